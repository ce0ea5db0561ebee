//! What clients call themselves, each name kept once: most of many thousand streams have one of a few.

use std::sync::Arc;

use hashbrown::HashSet;
use http::{HeaderMap, header};
use parking_lot::Mutex;

/// Bytes of a name: what follows is left out.
const MOST: usize = 256;
/// Unused names are looked for when there are so many.
const FEW: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Agents(Mutex<State>);

#[derive(Default)]
struct State {
    names: HashSet<Arc<str>>,
    /// At so many names the unused ones are dropped.
    tidy_at: usize,
}

impl Agents {
    /// The `User-Agent` of a request (RFC 9110 section 10.1.5), where it is visible ASCII.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
        let text = &text[..text.len().min(MOST)];
        let mut state = self.0.lock();
        if let Some(name) = state.names.get(text) {
            return Some(name.clone());
        }
        if state.names.len() >= state.tidy_at.max(FEW) {
            state.names.retain(|name| Arc::strong_count(name) > 1);
            state.tidy_at = state.names.len() * 2;
        }
        let name: Arc<str> = text.into();
        state.names.insert(name.clone());
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(agent: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::USER_AGENT, agent.parse().unwrap())])
    }

    #[test]
    fn equal_names_are_kept_once_and_unused_ones_not_for_long() {
        let agents = Agents::default();
        let first = agents.of(&headers("curl/8")).unwrap();
        assert!(Arc::ptr_eq(&first, &agents.of(&headers("curl/8")).unwrap()));
        for number in 0..10_000 {
            agents.of(&headers(&format!("agent {number}")));
        }
        assert!(agents.0.lock().names.len() <= FEW + 1);
        assert!(Arc::ptr_eq(&first, &agents.of(&headers("curl/8")).unwrap()), "it is in use");
        assert_eq!(agents.of(&headers(&"x".repeat(1000))).unwrap().len(), MOST);
        assert_eq!(agents.of(&HeaderMap::new()), None);
    }
}
