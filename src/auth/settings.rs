//! `auth`: keys and the algorithms they are bound to, claims, carriers, grants, and access without a token.
//!
//! Keys, key sets and templates are read into what verifying uses. Files are read, nothing is fetched.

use std::time::Duration;

use http::HeaderName;

use super::template::Template;
use crate::settings::{Section, Slot, Written};
use crate::subject::{Pattern, Subject};

mod backend;
mod credential;

pub(crate) use backend::Backend;
pub(crate) use credential::Signer;
pub(super) use credential::{Credential, credential, discovery};

/// `auth`
#[derive(Debug)]
pub(crate) struct Settings {
    /// Whose tokens are taken; without any there is only anonymous access.
    pub issuers: Vec<Issuer>,
    /// Who is asked where a request has no token.
    pub backend: Option<Backend>,
    /// Where a token may be in a request.
    pub carriers: Carriers,
    /// What a token grants beside its own claims.
    pub grants: Lists<Template>,
    /// What is granted without a token.
    pub anonymous: Lists<Pattern>,
    /// Whether anonymous access holds on a listener that is not on loopback, too.
    pub beyond_loopback: bool,
    /// Where revocations come from, beside the admin listener.
    pub revocations: Option<Control>,
    /// All of it as it was written, files included.
    pub written: Written,
}

/// `auth.revocations`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// The name of a source.
    pub source: String,
    /// What its broker calls the messages.
    pub subject: Subject,
}

/// Something for subscribing, and the same for publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lists<T> {
    /// For subscribing.
    pub subscribe: Vec<T>,
    /// For publishing.
    pub publish: Vec<T>,
}

impl<T> Lists<T> {
    /// Whether both lists are empty.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.publish.is_empty()
    }

    fn read(section: &Section<'_>, read: fn(Slot<'_>) -> Option<T>) -> Self {
        let list = |name: &str| section.key(name).list(read).or(Vec::new());
        Self { subscribe: list("subscribe"), publish: list("publish") }
    }
}

/// `auth.jwt`, or one of `auth.issuers`
#[derive(Debug)]
pub(crate) struct Issuer {
    /// Its key path.
    pub path: String,
    /// The `iss` of its tokens; `None`: they have none, or any where there is no other issuer.
    pub name: Option<String>,
    /// One of them must be in a token's `aud`; none: `aud` is not looked at.
    pub audiences: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// A token that is good for longer is refused.
    pub max_lifetime: Duration,
    /// At least one.
    pub(super) keys: Vec<Credential>,
    /// Where a token says what it grants: a claim's path.
    pub claims: Claims,
    /// What its tokens grant beside their own claims.
    pub(super) grants: Lists<Template>,
}

/// `claims` of an issuer
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    /// Patterns to subscribe to.
    pub subscribe: String,
    /// Patterns to publish to.
    pub publish: String,
}

/// `auth.carriers`
#[derive(Debug, Clone)]
pub(crate) struct Carriers {
    /// The header that is read.
    pub header: Header,
    /// The cookie's name.
    pub cookie: Option<String>,
    /// The query parameter's name.
    pub query: Option<String>,
}

/// `auth.carriers.header`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Header {
    /// None.
    Off,
    /// `Authorization: Bearer`
    Bearer,
    /// This one, which holds the token alone. A proxy sets it, so it never publishes.
    Named(HeaderName),
}

/// The longest life of a token where none is set.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

impl Settings {
    /// Takes the keys of `auth`.
    #[must_use]
    pub(crate) fn read(auth: &Section<'_>) -> Self {
        let pattern = |item: Slot<'_>| item.text().parse("must be a pattern such as public.>").required();
        let mut issuers = Vec::new();
        if let Some(jwt) = auth.key("jwt").optional_section() {
            issuers.push(Issuer::read(&jwt, "auth.jwt".to_owned(), &[]));
        }
        let mut number = 0;
        let others = auth.key("issuers").list(|item| {
            let issuer = Issuer::read(&item.section(), format!("auth.issuers[{number}]"), &issuers);
            issuers.push(issuer);
            number += 1;
            Some(())
        });
        others.or(Vec::new());
        let backend = auth.key("backend").optional_section().and_then(|backend| Backend::read(&backend));
        let carriers = Carriers::read(&auth.key("carriers").section());
        let grants = Lists::read(&auth.key("grants").section(), template);
        let anonymous = auth.key("anonymous").section();
        Self {
            issuers,
            backend,
            carriers,
            grants,
            anonymous: Lists::read(&anonymous, pattern),
            beyond_loopback: anonymous.key("beyond_loopback").flag().or(false),
            revocations: auth.key("revocations").optional_section().and_then(|section| Control::read(&section)),
            written: auth.written_with_files(),
        }
    }
}

impl Control {
    fn read(control: &Section<'_>) -> Option<Self> {
        let source = control.key("source").text().required();
        // What is escaped is called otherwise by the broker.
        let plain = |subject: &String| !subject.contains(['*', '>', '%', '#']);
        let expected = "must be one subject such as control.revoked, without wildcards";
        let subject = control.key("subject").text().check(plain, expected).parse(expected).required();
        Some(Self { source: source?, subject: subject? })
    }
}

/// Bytes of the longest token: a key of `server.limits`.
#[must_use]
pub(crate) fn token_bytes(limits: &Section<'_>) -> usize {
    limits.key("token_bytes").size().within(64, 1 << 20).or(8 << 10)
}

/// RFC 6265 section 4.1.1: a cookie's name is a token of HTTP.
fn is_cookie(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

fn template(item: Slot<'_>) -> Option<Template> {
    item.text().parse("must be a pattern such as user.{sub}.>, with claims in braces").required()
}

impl Issuer {
    /// Each token is checked by one of them, so it must differ from `others`.
    fn read(issuer: &Section<'_>, path: String, others: &[Self]) -> Self {
        let text = |slot: Slot<'_>| slot.text().check(|text| !text.trim().is_empty(), "must not be empty").optional();
        let some = "must list at least one key, such as { algorithms: [HS256], secret_file: /run/secrets/jwt }";
        let name = text(issuer.key("issuer"));
        if let Some(other) = others.iter().find(|other| other.name == name) {
            let missing = if name.is_some() { "another" } else { "set, and another" };
            issuer
                .problem("issuer", format!("must be {missing} than that of `{}`: a token is checked by the one that it names", other.path));
        }
        let audiences = issuer.key("audience").one_or_more(text);
        let leeway = issuer.key("leeway").duration().or(Duration::from_secs(30));
        let max_lifetime = issuer.key("max_lifetime").duration().positive().or(MAX_LIFETIME);
        let (discovers, discovered) = discovery(issuer, name.as_deref());
        let keys = issuer.key("keys").list(credential).default(Vec::new());
        let keys = keys.check(|keys| !keys.is_empty() || discovers, some).optional().unwrap_or_default();
        let claims = issuer.key("claims").section();
        // A name with dots is tried before its parts, so URLs can be names of claims too.
        let claim = |name: &str, default: &str| {
            let expected = "must be a claim's path such as mercure.subscribe, without an empty step";
            claims.key(name).text().check(|path| path.split('.').all(|step| !step.is_empty()), expected).or(default.to_owned())
        };
        let claims = Claims { subscribe: claim("subscribe", "subjects"), publish: claim("publish", "publish") };
        let grants = Lists::read(&issuer.key("grants").section(), template);
        let keys = keys.into_iter().chain(discovered).collect();
        Self { path, name, audiences, leeway, max_lifetime, keys, claims, grants }
    }

    /// The secrets that tokens can be made with.
    pub(crate) fn signers(&self) -> impl Iterator<Item = &Signer> {
        self.keys.iter().filter_map(|key| if let Credential::Secret(signer, _) = key { Some(signer) } else { None })
    }

    /// Whether its keys are a set, which the issuer uses for other services' tokens too.
    #[must_use]
    pub(crate) fn has_key_set(&self) -> bool {
        self.keys.iter().any(|key| matches!(key, Credential::Remote(_) | Credential::Set(_)))
    }

    /// Whether keys come in the clear, from another machine.
    #[must_use]
    pub(crate) fn fetches_in_the_clear(&self) -> bool {
        self.keys.iter().any(|key| if let Credential::Remote(remote) = key { remote.in_the_clear() } else { false })
    }
}

impl Carriers {
    fn read(carriers: &Section<'_>) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        let query = |name: &String| !name.is_empty() && name.chars().all(plain);
        let free = |name: &String| !matches!(name.as_str(), "subject" | "since" | "last_event_id" | "lastEventId" | "envelope");
        let taken = "must be another name than those of the parameters of /events";
        Self {
            header: Header::read(carriers.key("header")),
            cookie: carriers
                .key("cookie")
                .or_off(Some("brokercast".to_owned()), |key| key.text().check(|name| is_cookie(name), "must be a cookie's name")),
            query: carriers
                .key("query")
                .or_off(None, |key| key.text().check(query, "must be a parameter's name such as access_token").check(free, taken)),
        }
    }
}

impl Header {
    fn read(slot: Slot<'_>) -> Self {
        if !slot.is_set() || slot.is_flag() {
            return if slot.flag().or(true) { Self::Bearer } else { Self::Off };
        }
        let known = |name: &HeaderName| *name != http::header::AUTHORIZATION && *name != http::header::COOKIE;
        let expected = "must be true, false or the name of a header other than Authorization and Cookie, such as Cf-Access-Jwt-Assertion";
        let name = slot.text().read(expected, |text| text.parse().ok().filter(known)).optional();
        name.map_or(Self::Off, Self::Named)
    }
}
