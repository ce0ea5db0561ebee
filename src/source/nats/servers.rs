//! Which server a source connects to, in which order: those of the settings, then those that a server has named. Opens no
//! connection.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use super::config::Server;
use crate::source::expiry::Expiry;
use crate::support::random;

/// For one address: TCP, TLS and the greeting.
const GREETING: Duration = Duration::from_secs(5);
/// For all of them: less than the supervisor gives a connection.
const ALL: Duration = Duration::from_secs(25);
/// Other servers that are remembered.
const MOST: usize = 64;

/// What a source knows of its servers and connections beyond the settings.
#[derive(Debug, Default)]
pub(in crate::source) struct Servers {
    known: Mutex<Known>,
    /// Of what the last connection was opened with.
    pub(in crate::source) expiry: Expiry,
}

#[derive(Debug, Default)]
struct Known {
    /// Where it was connected last.
    last: Option<Server>,
    /// What the server there has named.
    advertised: Vec<Server>,
}

impl Servers {
    /// In the order in which they are tried: the settings' in a random order, then those that a server has named. Of each,
    /// the one that was connected to last, and is lost, comes last.
    pub(super) fn in_turn(&self, configured: &[Server]) -> Vec<Server> {
        let known = self.known.lock();
        let mut advertised = known.advertised.clone();
        advertised.retain(|server| !configured.iter().any(|other| other.is_at(server)));
        let mut all = Vec::new();
        for mut servers in [configured.to_vec(), advertised] {
            servers.sort_by_cached_key(|server| {
                let last = known.last.as_ref().is_some_and(|last| last.is_at(server));
                (last, random::in_range(0..u64::MAX))
            });
            all.append(&mut servers);
        }
        all
    }

    /// Notes where it is connected, and the addresses that the server there has named.
    pub(super) fn connected(&self, server: &Server, urls: &[String]) {
        let mut known = self.known.lock();
        known.last = Some(server.clone());
        let named: Vec<Server> = urls.iter().take(MOST).filter_map(|url| server.beside(url)).collect();
        if !named.is_empty() {
            known.advertised = named;
        }
    }
}

/// How long each address of a server may take, and the server in all, where `servers` are tried in turn.
pub(super) async fn patience(server: &Server, servers: usize) -> (Duration, Duration) {
    let found = timeout(GREETING, tokio::net::lookup_host((server.host.as_str(), server.port))).await;
    // The library reports what is wrong with a name.
    let addresses = found.ok().and_then(Result::ok).map_or(1, Iterator::count).clamp(1, 16);
    let share = |parts: usize| u32::try_from(parts).unwrap_or(u32::MAX);
    let each = (ALL / share(servers.max(1)) / share(addresses)).clamp(Duration::from_secs(1), GREETING);
    // It resolves the name again.
    (each, each * share(addresses) + Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(texts: &[&str]) -> Vec<Server> {
        texts.iter().map(|text| Server::parse(text).expect("a server")).collect()
    }

    fn hosts(servers: &[Server]) -> Vec<&str> {
        servers.iter().map(|server| server.host.as_str()).collect()
    }

    #[test]
    fn the_settings_servers_are_tried_first_and_the_lost_one_last_of_them() {
        let known = Servers::default();
        let configured = servers(&["tls://u:p@one", "tls://two"]);
        assert_eq!(known.in_turn(&configured).len(), 2);
        known.connected(&configured[0], &["10.0.0.1:4222".to_owned(), "two:4222".to_owned(), "[::1]:1".to_owned(), "x y".to_owned()]);
        for _ in 0..20 {
            let all = known.in_turn(&configured);
            assert_eq!(hosts(&all[..2]), ["two", "one"]);
            let mut rest = hosts(&all[2..]);
            rest.sort_unstable();
            assert_eq!(rest, ["10.0.0.1", "::1"]);
            // As it is called in the settings, so is its certificate checked, and so it is signed in to.
            assert!(all[2..].iter().all(|server| server.tls && server.name() == "one" && server.auth == configured[0].auth));
        }
        // Another server of the cluster passes the name on, and one that names nobody changes nothing.
        let other = known.in_turn(&configured).into_iter().find(|server| server.host == "10.0.0.1").expect("named");
        known.connected(&other, &["10.0.0.2:4222".to_owned()]);
        known.connected(&other, &[]);
        let all = known.in_turn(&configured);
        assert_eq!((all[2].host.as_str(), all[2].name()), ("10.0.0.2", "one"));
    }

    #[tokio::test]
    async fn each_address_has_time_of_its_own_but_all_have_less_than_a_connection() {
        let server = &servers(&["127.0.0.1"])[0];
        assert_eq!(patience(server, 1).await.0, Duration::from_secs(5));
        assert_eq!(patience(server, 10).await.0, Duration::from_millis(2500));
        assert_eq!(patience(server, 1000).await.0, Duration::from_secs(1));
    }
}
