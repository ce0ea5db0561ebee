//! A folder of the operator's own pages, served under `/dashboards/`.
//!
//! Serves only plain files inside the folder: no hidden files, no links that lead out of it, no listing other than `index.html`.
//!
//! A file is open only while a part of it is read, and few are at a time: so no client that is slow keeps a descriptor or a thread.
//! What it keeps is memory, and its address has a share of that ([`Budget`]).

use std::fs::{File, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::budget::{Budget, Held, Party};
use super::problem::Problem;
use crate::support::seldom::Seldom;

/// Bytes read at once.
const CHUNK: u64 = 64 << 10;
/// How much of a file may be in memory until its client has taken it: what is being sent, and what was read behind it.
const UNTAKEN: u64 = 2 * CHUNK;
/// How many files are looked at or read at a time. Each takes a thread and a descriptor, for as long as the disk takes.
const AT_ONCE: usize = 16;
/// When a client may come back that has too many answers that it does not take.
const RETRY: Duration = Duration::from_secs(1);
/// Between two warnings that the folder cannot be read, which any request can cause.
const QUIET: Duration = Duration::from_secs(10);

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    root: PathBuf,
    warn: Arc<Seldom>,
    at_once: Arc<Semaphore>,
}

/// A file, and what tells whether it is still the same.
struct Page {
    path: PathBuf,
    meta: Metadata,
}

/// A part of a file, with the share of memory that its answer has.
struct Part {
    bytes: Vec<u8>,
    _share: Arc<Held>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

enum Found {
    File(Page),
    /// A folder that was asked for as if it were a file.
    Folder,
}

impl Files {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, warn: Arc::new(Seldom::every(QUIET)), at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Does what may wait for the disk.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let permit = self.at_once.clone().acquire_owned().await.map_err(io::Error::other)?;
        let work = move || {
            let done = work();
            // Here, as a client that leaves does not end it.
            drop(permit);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    fn warn(&self, error: &io::Error) {
        if self.warn.may(Instant::now()) {
            tracing::warn!(%error, "cannot read from `server.dashboards`");
        }
    }

    /// Answers a request of `client`. `rest` is what follows `/dashboards/` in its path, still percent-encoded.
    pub(crate) async fn answer(
        &self,
        method: &Method,
        rest: &str,
        headers: &HeaderMap,
        client: IpAddr,
        budget: &Budget,
    ) -> Result<Response, Problem> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::method("GET, HEAD"));
        }
        let missing = || Problem::not_found("there is no such page");
        let relative = relative(rest).ok_or_else(missing)?;
        let root = self.root.clone();
        let as_folder = rest.is_empty() || rest.ends_with('/');
        let page = match self.blocking(move || find(&root, &relative, as_folder)).await {
            Ok(Some(Found::File(page))) => page,
            Ok(Some(Found::Folder)) => {
                // Without the slash relative links in the page would be wrong. A path that starts with `//` would name another host.
                let to = HeaderValue::from_str(&format!("/dashboards/{}/", rest.trim_matches('/'))).map_err(|_| missing())?;
                return Ok((StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response());
            }
            Ok(None) => return Err(missing()),
            Err(error) => {
                self.warn(&error);
                return Err(missing());
            }
        };
        let mut response = Response::new(Body::empty());
        let sent = response.headers_mut();
        sent.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let modified = page.meta.modified().ok();
        if let Some(value) = modified.and_then(|at| HeaderValue::from_str(&httpdate::fmt_http_date(at)).ok()) {
            let known = headers.get(header::IF_MODIFIED_SINCE) == Some(&value);
            sent.insert(header::LAST_MODIFIED, value);
            if known {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
        }
        sent.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&page.path)));
        sent.insert(header::CONTENT_LENGTH, page.meta.len().into());
        if method == Method::GET {
            *response.body_mut() = self.body(page, client, budget).await?;
        }
        Ok(response)
    }

    async fn body(&self, page: Page, client: IpAddr, budget: &Budget) -> Result<Body, Problem> {
        let mut share = budget.hold(Party::at(client));
        let untaken = page.meta.len().min(UNTAKEN);
        if !share.reserve(usize::try_from(untaken).unwrap_or(usize::MAX)) {
            return Err(Problem::unavailable("too many pages were asked for that are not read", RETRY));
        }
        let (files, page, share) = (self.clone(), Arc::new(page), Arc::new(share));
        // Read before the head is sent: a file that cannot be read is a missing page.
        let first = files.read(&page, 0, &share).await.map_err(|_| Problem::not_found("there is no such page"))?;
        let read = first.len() as u64;
        let rest = futures_util::stream::try_unfold(read, move |at| {
            let (files, page, share) = (files.clone(), page.clone(), share.clone());
            async move {
                if at >= page.meta.len() {
                    return Ok::<_, io::Error>(None);
                }
                let part = files.read(&page, at, &share).await?;
                let next = at + part.len() as u64;
                Ok(Some((part, next)))
            }
        });
        Ok(Body::from_stream(futures_util::StreamExt::chain(futures_util::stream::iter([Ok(first)]), rest)))
    }

    /// The part of a file that begins at `at`.
    async fn read(&self, page: &Arc<Page>, at: u64, share: &Arc<Held>) -> io::Result<Bytes> {
        let (page, share) = (page.clone(), share.clone());
        let read = self.blocking(move || Ok(Bytes::from_owner(Part { bytes: page.read(at)?, _share: share }))).await;
        read.inspect_err(|error| self.warn(error))
    }
}

impl Page {
    fn read(&self, at: u64) -> io::Result<Vec<u8>> {
        let file = File::open(&self.path)?;
        let seen = |meta: &Metadata| (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        if seen(&file.metadata()?) != seen(&self.meta) {
            return Err(io::Error::other("a file changed while it was sent"));
        }
        let length = usize::try_from((self.meta.len() - at).min(CHUNK)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// Returns the path inside the folder, or `None` if it is not a plain one.
fn relative(rest: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(rest).decode_utf8().ok()?;
    let mut path = PathBuf::new();
    let trimmed = decoded.strip_suffix('/').unwrap_or(&decoded);
    if trimmed.is_empty() {
        return (decoded.len() == trimmed.len()).then_some(path);
    }
    for part in trimmed.split('/') {
        // Hidden files, `..` among them, and characters that other systems take for separators.
        if part.is_empty() || part.starts_with('.') || part.contains(['\\', '\0', ':']) {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

fn find(root: &Path, relative: &Path, as_folder: bool) -> io::Result<Option<Found>> {
    let root = root.canonicalize()?;
    let mut path = root.join(relative);
    if as_folder {
        path.push("index.html");
    }
    // Missing, name too long, circular links, no permission: to a client all of these are a missing page.
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    // Links have been followed by now.
    if !path.starts_with(&root) {
        return Ok(None);
    }
    let Ok(meta) = path.metadata() else { return Ok(None) };
    if meta.is_dir() {
        return Ok((!as_folder && path.join("index.html").is_file()).then_some(Found::Folder));
    }
    // Opening a pipe would wait for its other end.
    Ok(meta.is_file().then_some(Found::File(Page { path, meta })))
}

fn content_type(path: &Path) -> &'static str {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "wasm" => "application/wasm",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn get(files: &Files, rest: &str) -> (u16, String) {
        match files.answer(&Method::GET, rest, &HeaderMap::new(), CLIENT, &Budget::default()).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8_lossy(&body).into_owned())
            }
            Err(problem) => (problem.status().as_u16(), String::new()),
        }
    }

    #[tokio::test]
    async fn only_plain_files_inside_the_folder_are_served() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("pages");
        std::fs::create_dir_all(root.join("sub/empty")).unwrap();
        std::fs::create_dir_all(root.join(".git")).unwrap();
        std::fs::write(outer.path().join("secret.txt"), "secret").unwrap();
        for (name, text) in
            [("a.html", "a"), ("sub/index.html", "sub"), ("with space.txt", "w"), (".hidden", "h"), (".git/config", "g"), ("big.txt", "")]
        {
            std::fs::write(root.join(name), text).unwrap();
        }
        let big = "x".repeat(3 * usize::try_from(CHUNK).unwrap() + 17);
        std::fs::write(root.join("big.txt"), &big).unwrap();
        std::os::unix::fs::symlink("../secret.txt", root.join("out.txt")).unwrap();
        std::os::unix::fs::symlink(outer.path(), root.join("up")).unwrap();
        std::os::unix::fs::symlink("a.html", root.join("in.html")).unwrap();
        let files = Files::new(root);
        for (path, expected) in [("a.html", "a"), ("sub/", "sub"), ("with%20space.txt", "w"), ("in.html", "a"), ("big.txt", big.as_str())] {
            assert_eq!(get(&files, path).await, (200, expected.to_owned()), "{path}");
        }
        assert_eq!(get(&files, "sub").await.0, 308);
        for path in [
            "",
            "nothing",
            "sub/empty",
            "sub/empty/",
            "../secret.txt",
            "%2e%2e/secret.txt",
            "..%2fsecret.txt",
            "sub/../a.html",
            "out.txt",
            "up/secret.txt",
            ".hidden",
            ".git/config",
            "/etc/passwd",
            "//etc/passwd",
            "a.html/",
            "a.html/x",
            "%00",
            "sub%5c..",
            "%ff",
            "/",
        ] {
            assert_eq!(get(&files, path).await.0, 404, "{path}");
        }
        assert_eq!(files.answer(&Method::POST, "a.html", &HeaderMap::new(), CLIENT, &Budget::default()).await.unwrap_err().status(), 405);
    }

    #[tokio::test]
    async fn a_file_that_did_not_change_is_not_sent_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.js"), "a").unwrap();
        let files = Files::new(root.path().to_owned());
        let first = files.answer(&Method::HEAD, "a.js", &HeaderMap::new(), CLIENT, &Budget::default()).await.unwrap();
        assert_eq!(first.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert_eq!(first.headers()[header::CONTENT_LENGTH], "1");
        let asked = HeaderMap::from_iter([(header::IF_MODIFIED_SINCE, first.headers()[header::LAST_MODIFIED].clone())]);
        assert_eq!(
            files.answer(&Method::GET, "a.js", &asked, CLIENT, &Budget::default()).await.unwrap().status(),
            StatusCode::NOT_MODIFIED
        );
    }

    /// How many descriptors of this process lead to the file.
    fn open(path: &Path) -> usize {
        let leads = |entry: io::Result<std::fs::DirEntry>| std::fs::read_link(entry.unwrap().path()).is_ok_and(|to| to == path);
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| leads(entry).then_some(())).count()
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_keep_no_descriptor_and_a_share_of_memory_of_their_address() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap().join("big");
        std::fs::write(&path, vec![b'x'; 10 * usize::try_from(CHUNK).unwrap()]).unwrap();
        let (files, budget) = (Files::new(root.path().to_owned()), Budget::default());
        let ask = async |last: u8, name: &str| {
            let client = IpAddr::from([127, 0, 0, last]);
            files.answer(&Method::GET, name, &HeaderMap::new(), client, &budget).await.map(Response::into_body)
        };
        let mut untaken = Vec::new();
        let refused = loop {
            match ask(1, "big").await {
                Ok(mut body) => {
                    // As hyper does: it asks for more than the client takes.
                    let parts = [body.frame().await.unwrap().unwrap(), body.frame().await.unwrap().unwrap()];
                    untaken.push((body, parts));
                }
                Err(problem) => break problem,
            }
        };
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((untaken.len(), open(&path)), (256, 0));
        assert_eq!(ask(2, "big").await.unwrap().collect().await.unwrap().to_bytes().len() as u64, 10 * CHUNK);
        // A part that waits in a socket's buffer counts on when its body is gone.
        let waits: Vec<_> = untaken.into_iter().map(|(_, parts)| parts).collect();
        assert!(ask(1, "big").await.is_err());
        drop(waits);
        assert!(ask(1, "big").await.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_sent_ends_the_answer_with_an_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("big");
        std::fs::write(&path, vec![b'x'; 3 * usize::try_from(CHUNK).unwrap()]).unwrap();
        let (files, budget) = (Files::new(root.path().to_owned()), Budget::default());
        let mut body = files.answer(&Method::GET, "big", &HeaderMap::new(), CLIENT, &budget).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        std::fs::write(root.path().join("new"), vec![b'y'; 3 * usize::try_from(CHUNK).unwrap()]).unwrap();
        std::fs::rename(root.path().join("new"), &path).unwrap();
        assert!(body.frame().await.unwrap().is_err());
    }
}
