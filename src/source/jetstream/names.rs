//! Which of a stream's subjects are a source's, and what they are called here.
//!
//! A key of a bucket is `$KV.BUCKET.KEY` in the stream and `BUCKET.KEY` here. A bucket that is a mirror of another, or gets
//! its messages from others, holds them under the other buckets' names, however many lie between: so `$KV.*.KEY` is read.

use std::borrow::Cow;

use super::api::{Feed, StreamInfo};
use crate::source::SourceError;
use crate::source::nats::headers::KEYS;
use crate::source::nats::{Config, JetStream};
use crate::subject::{self, Pattern, Subject};

/// What the names of buckets' streams begin with.
const BUCKET: &str = "KV_";

/// Which of the stream's subjects are this source's, and what they are called here.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// As the stream has them.
    pub(super) subjects: Vec<Pattern>,
    pub(super) bucket: Option<String>,
    /// What a message without a subject is called.
    unnamed: Subject,
}

impl Names {
    pub(super) fn new(config: &Config, stream: &JetStream, unnamed: Subject) -> Self {
        let bucket = stream.stream.strip_prefix(BUCKET).filter(|_| !config.hidden.is_empty()).map(str::to_owned);
        let subjects = match bucket {
            Some(_) => vec![format!("{KEYS}*.>").parse().expect("a pattern")],
            None => subject::minimal(config.subjects.clone()),
        };
        Self { subjects, bucket, unnamed }
    }

    /// What a subject of the stream is called here; `None`: it is not of this source.
    pub(super) fn shown(&self, stored: &[u8]) -> Option<Subject> {
        let text = String::from_utf8_lossy(stored);
        if !self.subjects.iter().any(|ours| ours.matches(&text)) {
            return None;
        }
        let shown = match &self.bucket {
            None => Cow::Borrowed(stored),
            Some(bucket) => {
                let key = stored.splitn(3, |b| *b == b'.').nth(2).unwrap_or_default();
                Cow::Owned([bucket.as_bytes(), b".", key].concat())
            }
        };
        Some(Subject::from_broker(&shown, &self.unnamed))
    }

    /// How the stream has what is called so here: a subject or a pattern.
    pub(super) fn stored(&self, shown: &str, info: &StreamInfo) -> String {
        match (&self.bucket, shown.split_once('.')) {
            (None, _) => shown.to_owned(),
            (Some(_), Some((_, key))) if info.own_subjects().is_empty() => format!("{KEYS}*.{key}"),
            (Some(_), _) => format!("{KEYS}{shown}"),
        }
    }

    /// An error if the stream is a bucket's by its name and holds no keys: it gets its messages from a stream that is none.
    pub(super) fn are_keys(&self, info: &StreamInfo) -> Result<(), SourceError> {
        let (Some(bucket), config) = (&self.bucket, &info.config) else { return Ok(()) };
        let mut feeds = config.mirror.iter().chain(config.sources.iter().flatten()).peekable();
        let Some(first) = feeds.peek().map(|feed| feed.name.clone()) else { return Ok(()) };
        if config.subjects.iter().flatten().next().is_some() || feeds.any(Feed::has_keys) {
            return Ok(());
        }
        Err(SourceError::configuration(format!(
            "the bucket `{bucket}` gets its messages from the stream `{first}`, which is no bucket: read it with `jetstream.stream: {BUCKET}{bucket}` and `subjects` instead of `kv`"
        )))
    }
}

impl Feed {
    /// Whether what comes of it is named as buckets' keys are.
    fn has_keys(&self) -> bool {
        match self.subject_transforms.as_deref().unwrap_or_default() {
            [] => self.name.starts_with(BUCKET),
            transforms => transforms.iter().any(|transform| transform.dest.is_empty() || transform.dest.starts_with(KEYS)),
        }
    }
}
