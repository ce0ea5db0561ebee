//! The built-in page, as it lies in `http/dashboard/`.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, header};

use super::problem::Problem;

/// No host but this one, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where its parts stand.
pub(crate) const PATHS: [&str; 3] = ["/", "/dashboard.js", "/dashboard.css"];

pub(crate) fn answer(method: &Method, path: &str) -> Result<Response, Problem> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Problem::method("GET, HEAD"));
    }
    let (kind, text) = match path {
        "/dashboard.js" => ("text/javascript; charset=utf-8", include_str!("dashboard/app.js")),
        "/dashboard.css" => ("text/css; charset=utf-8", include_str!("dashboard/style.css")),
        _ => ("text/html; charset=utf-8", include_str!("dashboard/index.html")),
    };
    let mut response = Response::new(if method == Method::HEAD { Body::empty() } else { Body::from(text) });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    // A new version of the program is a new page at once.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}
