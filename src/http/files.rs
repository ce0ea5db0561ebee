//! A folder of the operator's own pages, served under `/dashboards/`.
//!
//! Serves only plain files inside the folder: no hidden files, no links that lead out of it, no listing other than `index.html`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::problem::Problem;
use crate::support::seldom::Seldom;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Between two warnings that the folder cannot be read, which any request can cause.
const QUIET: Duration = Duration::from_secs(10);

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    root: PathBuf,
    warn: Arc<Seldom>,
}

enum Found {
    File {
        path: PathBuf,
        length: u64,
        modified: Option<SystemTime>,
    },
    /// A folder that was asked for as if it were a file.
    Folder,
}

impl Files {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, warn: Arc::new(Seldom::every(QUIET)) }
    }

    fn warn(&self, error: &io::Error) {
        if self.warn.may(Instant::now()) {
            tracing::warn!(%error, "cannot read from `server.dashboards`");
        }
    }

    /// Answers a request. `rest` is what follows `/dashboards/` in its path, still percent-encoded.
    pub(crate) async fn answer(&self, method: &Method, rest: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::method("GET, HEAD"));
        }
        let missing = || Problem::not_found("there is no such page");
        let relative = relative(rest).ok_or_else(missing)?;
        let root = self.root.clone();
        let as_folder = rest.is_empty() || rest.ends_with('/');
        let found = tokio::task::spawn_blocking(move || find(&root, &relative, as_folder)).await.map_err(|_| Problem::internal())?;
        match found {
            Ok(Some(Found::File { path, length, modified })) => self.send(method, headers, &path, length, modified).await,
            Ok(Some(Found::Folder)) => {
                // Without the slash relative links in the page would be wrong. A path that starts with `//` would name another host.
                let to = HeaderValue::from_str(&format!("/dashboards/{}/", rest.trim_matches('/'))).map_err(|_| missing())?;
                Ok((StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response())
            }
            Ok(None) => Err(missing()),
            Err(error) => {
                self.warn(&error);
                Err(missing())
            }
        }
    }

    async fn send(
        &self,
        method: &Method,
        asked: &HeaderMap,
        path: &Path,
        length: u64,
        modified: Option<SystemTime>,
    ) -> Result<Response, Problem> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(value) = modified.and_then(|at| HeaderValue::from_str(&httpdate::fmt_http_date(at)).ok()) {
            let known = asked.get(header::IF_MODIFIED_SINCE) == Some(&value);
            headers.insert(header::LAST_MODIFIED, value);
            if known {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
        headers.insert(header::CONTENT_LENGTH, length.into());
        if method == Method::HEAD {
            return Ok(response);
        }
        let file = tokio::fs::File::open(path).await.map_err(|error| {
            self.warn(&error);
            Problem::not_found("there is no such page")
        })?;
        // Never more than was promised, should the file grow meanwhile.
        let chunks = futures_util::stream::try_unfold(file.take(length), |mut file| async move {
            let mut chunk = Vec::with_capacity(CHUNK);
            let n = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            Ok::<_, io::Error>((n > 0).then(|| (Bytes::from(chunk), file)))
        });
        *response.body_mut() = Body::from_stream(chunks);
        Ok(response)
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
    Ok(meta.is_file().then(|| Found::File { path, length: meta.len(), modified: meta.modified().ok() }))
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

    async fn get(files: &Files, rest: &str) -> (u16, String) {
        match files.answer(&Method::GET, rest, &HeaderMap::new()).await {
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
        let big = "x".repeat(3 * CHUNK + 17);
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
        assert_eq!(files.answer(&Method::POST, "a.html", &HeaderMap::new()).await.unwrap_err().status(), 405);
    }

    #[tokio::test]
    async fn a_file_that_did_not_change_is_not_sent_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.js"), "a").unwrap();
        let files = Files::new(root.path().to_owned());
        let first = files.answer(&Method::HEAD, "a.js", &HeaderMap::new()).await.unwrap();
        assert_eq!(first.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert_eq!(first.headers()[header::CONTENT_LENGTH], "1");
        let asked = HeaderMap::from_iter([(header::IF_MODIFIED_SINCE, first.headers()[header::LAST_MODIFIED].clone())]);
        assert_eq!(files.answer(&Method::GET, "a.js", &asked).await.unwrap().status(), StatusCode::NOT_MODIFIED);
    }
}
