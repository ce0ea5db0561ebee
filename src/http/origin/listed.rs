//! Origins as the configuration lists them, and which origins of pages they cover.
//!
//! Pure. Knows the schemes whose pages send an origin; nothing of requests.

use super::{host_name, normal};

/// Schemes of pages that are no web pages: apps in a web view, and browsers' extensions (`…extension`).
const OF_APPS: [&str; 3] = ["capacitor", "tauri", "ionic"];

/// One entry of `server.cors.origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listed {
    /// `*`: all.
    Any,
    /// `null`: what files, sandboxed frames and some redirects send, so any page can make itself one of these.
    Null,
    /// One origin, as browsers write it.
    Exact(String),
    /// `https://*.example.com`: one label or more before the name. `https://*`: every host.
    Below {
        /// With `://`.
        scheme: String,
        /// `.example.com`, or nothing.
        suffix: String,
        /// `:8443`, or nothing: the scheme's own.
        port: String,
    },
}

impl Listed {
    /// Reads an entry. Returns `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "*" => return Some(Self::Any),
            "null" => return Some(Self::Null),
            _ => {}
        }
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let known = matches!(&*scheme, "http" | "https") || OF_APPS.contains(&&*scheme) || scheme.ends_with("extension");
        if !known || !scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
            return None;
        }
        let Some(below) = authority.strip_prefix('*') else {
            return Some(Self::Exact(normal(&format!("{scheme}://{}", host_name(authority)?))));
        };
        // Read as a name below the wildcard: so what is there must be a name, and the port one.
        let example = host_name(&format!("x{below}")).filter(|_| below.is_empty() || below.starts_with(['.', ':']))?;
        let example = normal(&format!("{scheme}://{example}"));
        let below = example.strip_prefix(&*scheme)?.strip_prefix("://x")?;
        let (suffix, port) = below.split_at(below.find(':').unwrap_or(below.len()));
        // Browsers keep the root's dot, and whoever writes one means something else.
        (!suffix.ends_with('.')).then(|| Self::Below { scheme: format!("{scheme}://"), suffix: suffix.to_owned(), port: port.to_owned() })
    }

    /// Whether it covers a page's origin, which is given in lower case and without its scheme's own port.
    pub(super) fn covers(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Null => origin == "null",
            Self::Exact(listed) => listed == origin,
            Self::Below { scheme, suffix, port } => {
                let host = origin.strip_prefix(&**scheme).and_then(|rest| rest.strip_suffix(&**port));
                let below = host.and_then(|host| host.strip_suffix(&**suffix));
                let bare = |host: &str| host_name(host).is_some() && (host.ends_with(']') || !host.contains(':'));
                below.is_some_and(|below| !below.is_empty()) && host.is_some_and(bare)
            }
        }
    }

    /// Why no page of these may bring cookies: any page can have one of these origins, so cookies must not be accepted from them.
    pub(crate) fn without_credentials(&self) -> bool {
        match self {
            Self::Any | Self::Null => true,
            Self::Exact(_) => false,
            Self::Below { suffix, .. } => suffix.is_empty(),
        }
    }

    /// Whether it covers all names below a top-level domain, such as `https://*.com`.
    pub(crate) fn is_broad(&self) -> bool {
        matches!(self, Self::Below { suffix, .. } if suffix.matches('.').count() < 2 && suffix != ".localhost")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_one_label_or_more_and_nothing_else() {
        for (listed, covered, others) in [
            (
                "https://*.Example.com",
                &["https://a.example.com", "https://a.b.example.com", "https://xn--bcher-kva.example.com"][..],
                &[
                    "https://example.com",
                    "https://.example.com",
                    "https://a..example.com",
                    "https://evilexample.com",
                    "http://a.example.com",
                    "https://a.example.com:8443",
                    "https://a.example.com.evil.org",
                    "https://evil.org/.example.com",
                    "https://evil.org:.example.com",
                    "https://u@a.example.com",
                    "null",
                ][..],
            ),
            ("https://*.example.com:443", &["https://a.example.com"], &["https://a.example.com:444"]),
            ("http://*.dev.test:3000", &["http://a.dev.test:3000"], &["http://a.dev.test", "http://a.dev.test:30000"]),
            ("https://*", &["https://a", "https://a.b", "https://[::1]"], &["https://", "http://a", "https://a:81", "https://[::1]:81"]),
            ("https://*:8443", &["https://a:8443", "https://[::1]:8443"], &["https://a", "https://:8443"]),
            ("capacitor://localhost", &["capacitor://localhost"], &["capacitor://localhost:80", "http://localhost", "capacitor://other"]),
            ("chrome-extension://abcdef", &["chrome-extension://abcdef"], &["chrome-extension://abcdeg"]),
            ("moz-extension://*", &["moz-extension://0c9c5f2e-1f1c"], &["chrome-extension://0c9c5f2e-1f1c"]),
            ("null", &["null"], &["http://null", ""]),
            ("*", &["null", "https://a", "x"], &[]),
        ] {
            let listed = Listed::parse(listed).expect(listed);
            for origin in covered {
                assert!(listed.covers(origin), "{listed:?} {origin}");
            }
            for origin in others {
                assert!(!listed.covers(origin), "{listed:?} {origin}");
            }
        }
    }

    #[test]
    fn other_forms_are_none() {
        for text in [
            "",
            "**",
            "*.example.com",
            "https://*example.com",
            "https://a.*.com",
            "https://*.*.com",
            "https://*.",
            "https://*.:1",
            "https://*.a/",
            "https://*.a b",
            "https://*:x",
            "https://*:",
            "*://a",
            "htps://a",
            "file://a",
            "ftp://a",
            "data://x",
            "://a",
            "Null",
            "tauri://",
            "x extension://a",
            "https://u@a",
            "https://a/b",
        ] {
            assert_eq!(Listed::parse(text), None, "{text}");
        }
    }
}
