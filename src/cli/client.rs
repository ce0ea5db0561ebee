//! What the commands that are HTTP clients share: the client, tokens, the bridge's address, refusals in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use serde_json::Value;

use super::{Error, load};
use crate::app::Settings;
use crate::support;
use crate::support::address::Address;
use crate::support::web::is_loopback;

/// How to reach a bridge, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Reach {
    /// The bridge's address; by default that of the configuration's `server.listen`
    #[arg(long, value_name = "URL", value_parser = Target::parse)]
    pub(super) url: Option<Target>,
    /// A token to send; better in the environment, where `ps` does not show it
    #[arg(long, env = "BROKERCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust instead of the system's, for a bridge with a private certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The bridge whose address was asked for.
    #[arg(skip)]
    target: OnceLock<Target>,
}

impl Reach {
    /// The bridge's address, from the configuration where none is given.
    pub(super) fn address(&self, files: &[PathBuf]) -> Result<Url, Error> {
        match &self.url {
            Some(target) => Ok(self.reach(target.clone())),
            None => self.address_of(&load(files)?.settings),
        }
    }

    /// The bridge's address, where its configuration has been read.
    pub(super) fn address_of(&self, settings: &Settings) -> Result<Url, Error> {
        match &self.url {
            Some(target) => Ok(self.reach(target.clone())),
            None => Ok(self.reach(Target::of_listener(&settings.http.listen, settings.http.tls.is_some())?)),
        }
    }

    fn reach(&self, target: Target) -> Url {
        self.target.get_or_init(|| target).url.clone()
    }

    /// A client that shows the token, for the bridge whose address was asked for.
    pub(super) fn client(&self) -> Result<Client, Error> {
        let mut headers = HeaderMap::new();
        let token = match (&self.token, &self.token_file) {
            // It was asked for here and now; the token may come from the environment.
            (_, Some(file)) => Some(read(file)?.trim().to_owned()),
            (Some(token), None) => Some(token.trim().to_owned()),
            (None, None) => None,
        };
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| Error::new("the token has characters that no token has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = client().default_headers(headers);
        if let Some(target) = self.target.get() {
            builder = target.lead(builder);
        }
        if let Some(file) = &self.ca {
            let pem = read(file)?;
            let certificates = Certificate::from_pem_bundle(pem.as_bytes());
            let what = || format!("`{}` holds no certificates in PEM", file.display());
            builder = builder.tls_certs_only(certificates.map_err(|e| Error::with(what(), e))?);
        }
        builder.build().map_err(|e| Error::with("cannot make an HTTP client", e))
    }
}

/// Where a bridge is asked: its address, and the Unix socket that leads there, if it is one.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Url,
    socket: Option<PathBuf>,
    /// It is on this machine, so that no proxy of the environment has any business with it.
    here: bool,
}

impl Target {
    /// Reads an address as it is typed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(Address::Unix(path)) = Address::parse(text) {
            return Self::of_socket(path, false).map_err(|error| error.to_string());
        }
        // `127.0.0.1:8080` is no URL, and `localhost:8080` one of a scheme that nobody means.
        let url = text.parse().ok().filter(|url: &Url| matches!(url.scheme(), "http" | "https"));
        let expected =
            "must begin with http:// or https://, as http://127.0.0.1:8080 does, or name a Unix socket: unix:/run/brokercast.sock";
        let url = url.ok_or(expected)?;
        Ok(Self { here: is_loopback(&url), url, socket: None })
    }

    /// How a listener of this machine's is reached.
    pub(super) fn of_listener(listen: &Address, tls: bool) -> Result<Self, Error> {
        match listen {
            Address::Tcp(address) => Ok(Self { url: url(&reachable(*address).to_string(), tls)?, socket: None, here: true }),
            Address::Unix(path) => Self::of_socket(path.clone(), tls),
        }
    }

    fn of_socket(path: PathBuf, tls: bool) -> Result<Self, Error> {
        Ok(Self { url: url("localhost", tls)?, socket: Some(path), here: true })
    }

    /// A client that comes there.
    pub(super) fn lead(&self, client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        let client = if self.here { client.no_proxy() } else { client };
        match &self.socket {
            Some(socket) => client.unix_socket(socket.as_path()),
            None => client,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.socket {
            Some(socket) => write!(f, "unix:{}", socket.display()),
            None => f.write_str(&place(&self.url)),
        }
    }
}

fn url(host: &str, tls: bool) -> Result<Url, Error> {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{host}").parse().map_err(|e| Error::with(format!("`{host}` cannot be asked"), e))
}

/// What every client here is: no redirects (a token must not follow one), a bound on connecting.
pub(super) fn client() -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(concat!("brokercast/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .tcp_keepalive(Duration::from_secs(15))
}

/// `path`, below the path that the address may have.
pub(super) fn below(address: &Url, path: &str) -> Url {
    let mut url = address.clone();
    url.set_path(&format!("{}{path}", address.path().trim_end_matches('/')));
    url
}

/// Where to ask for a listener of this machine's: who listens everywhere is found on loopback.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// What to say of a bridge that cannot be asked.
pub(super) fn unreachable(url: &Url, error: reqwest::Error) -> Error {
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let mut kinds = causes.filter_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
    let nobody = kinds.any(|kind| kind == std::io::ErrorKind::ConnectionRefused);
    let hint = if nobody { " (is it running there? `--url` names another place)" } else { "" };
    Error::with(format!("the bridge at {} cannot be reached{hint}", place(url)), error.without_url())
}

/// Host and port.
pub(super) fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|e| Error::with(format!("cannot read `{}`", file.display()), e))
}

/// An answer that is a refusal, in words: its status and what its body says.
pub(super) async fn refusal(mut answer: Response) -> String {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 64 << 10 {
            break;
        }
    }
    words(status, serde_json::from_slice(&body).ok().as_ref())
}

/// A status, and what a problem document says beside it.
pub(super) fn words(status: StatusCode, body: Option<&Value>) -> String {
    let detail = body.and_then(|body| body.get("detail").or_else(|| body.get("title"))?.as_str());
    match detail {
        Some(detail) => format!("{status}: {}", plain(detail)),
        None => status.to_string(),
    }
}

/// A text without what a terminal would obey. Tabs stay.
pub(super) fn plain(text: &str) -> String {
    text.split('\t').map(|part| support::plain::plain(part, usize::MAX)).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        for (listen, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.1.2.3:4", "10.1.2.3:4"), ("127.0.0.1:5", "127.0.0.1:5")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }

    #[test]
    fn an_address_is_one_of_http_or_a_unix_socket() {
        let parse = |typed: &str| Target::parse(typed).map(|target| (target.url.to_string(), target.socket));
        assert_eq!(parse("http://127.0.0.1:8080"), Ok(("http://127.0.0.1:8080/".to_owned(), None)));
        assert_eq!(parse("unix:/run/a.sock"), Ok(("http://localhost/".to_owned(), Some("/run/a.sock".into()))));
        for typed in ["127.0.0.1:8080", "localhost:8080", "ftp://h", "http://", "unix:", "/run/a.sock", ""] {
            assert!(parse(typed).is_err_and(|why| why.contains("http://127.0.0.1:8080")), "{typed}");
        }
    }

    #[test]
    fn paths_stand_below_the_addresss_own() {
        for (address, url) in [
            ("http://h:1", "http://h:1/events"),
            ("http://h:1/", "http://h:1/events"),
            ("https://h/live/", "https://h/live/events"),
            ("https://h/live", "https://h/live/events"),
        ] {
            assert_eq!(below(&address.parse().unwrap(), "/events").as_str(), url);
        }
    }

    #[test]
    fn a_terminal_is_told_nothing_it_would_obey() {
        assert_eq!(plain("a\u{1b}[2Jb\tü\u{202e}"), "a\\u{1b}[2Jb\tü\\u{202e}");
    }
}
