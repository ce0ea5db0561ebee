//! The built-in page, embedded from `http/dashboard/`.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Method, header};

use super::problem::Problem;

/// The page may load from this host only, and has no inline scripts or styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The paths of its parts.
pub(crate) const PATHS: [&str; 3] = ["/", "/dashboard.js", "/dashboard.css"];

/// The page of one configuration.
pub(crate) struct Dashboard {
    html: Bytes,
}

impl Dashboard {
    /// `cookie`: the cookie that may hold a token, if that is configured.
    pub(crate) fn new(cookie: Option<&str>) -> Self {
        // `&` is the only character of a cookie's name that is special in HTML.
        let cookie = cookie.unwrap_or_default().replace('&', "&amp;");
        Self { html: include_str!("dashboard/index.html").replace("{{cookie}}", &cookie).into() }
    }

    pub(crate) fn answer(&self, method: &Method, path: &str) -> Result<Response, Problem> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::method("GET, HEAD"));
        }
        let (kind, text) = match path {
            "/dashboard.js" => ("text/javascript; charset=utf-8", Bytes::from_static(include_bytes!("dashboard/app.js"))),
            "/dashboard.css" => ("text/css; charset=utf-8", Bytes::from_static(include_bytes!("dashboard/style.css"))),
            _ => ("text/html; charset=utf-8", self.html.clone()),
        };
        let length = text.len();
        let mut response = Response::new(if method == Method::HEAD { Body::empty() } else { Body::from(text) });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CONTENT_LENGTH, length.into());
        // After an update of the program browsers must load the new page at once.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        Ok(response)
    }
}
