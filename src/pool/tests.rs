use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;

use super::*;

fn config(max: usize) -> Settings {
    Settings { max, max_per_identity: None, max_per_address: None, wait: Duration::ZERO, waiting: 100 }
}

fn queued(pool: &Pool) -> usize {
    pool.0.state.lock().queue.len()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

const HERE: &str = "192.0.2.1";

async fn here(pool: &Pool, identity: Option<&str>) -> Result<Permit, Refusal> {
    pool.acquire(identity.map(|name| named(None, name)).as_ref(), address(HERE)).await
}

fn named(issuer: Option<&str>, name: &str) -> Identity {
    Identity { issuer: issuer.map(Arc::from), name: name.into() }
}

#[test]
fn a_permit_is_small() {
    assert!(size_of::<Permit>() <= 16);
}

#[tokio::test]
async fn the_pool_is_full_at_its_cap_and_free_again_when_a_permit_goes() {
    let pool = Pool::new(config(2));
    let first = here(&pool, None).await.expect("a slot");
    let _second = here(&pool, Some("a")).await.expect("a slot");
    assert_eq!(here(&pool, None).await.expect_err("full"), Refusal::Full);
    assert_eq!((pool.taken(), pool.max()), (2, 2));
    drop(first);
    assert!(here(&pool, None).await.is_ok());
    assert_eq!(pool.taken(), 1);
}

#[tokio::test]
async fn each_identity_and_each_address_has_a_cap_of_its_own() {
    let pool = Pool::new(Settings { max_per_identity: Some(2), max_per_address: Some(3), ..config(10) });
    let _a = (here(&pool, Some("a")).await.expect("a slot"), here(&pool, Some("a")).await.expect("a slot"));
    assert_eq!(here(&pool, Some("a")).await.expect_err("two of two"), Refusal::Identity);
    assert!(pool.acquire(Some(&named(Some("another"), "a")), address(HERE)).await.is_ok(), "another issuer's");
    let b = here(&pool, Some("b")).await.expect("a slot");
    assert_eq!(here(&pool, None).await.expect_err("three of three"), Refusal::Address);
    assert_eq!(here(&pool, Some("c")).await.expect_err("three of three"), Refusal::Address);
    let elsewhere = pool.acquire(None, address("192.0.2.2")).await;
    assert!(elsewhere.is_ok());
    drop(b);
    assert!(here(&pool, Some("c")).await.is_ok());
}

#[tokio::test]
async fn a_refusal_names_the_clients_own_cap_before_the_common_one() {
    let pool = Pool::new(Settings { max_per_identity: Some(1), max_per_address: Some(2), ..config(1) });
    let _one = here(&pool, Some("a")).await.expect("a slot");
    assert_eq!(here(&pool, Some("a")).await.expect_err("own"), Refusal::Identity);
    assert_eq!(here(&pool, Some("b")).await.expect_err("common"), Refusal::Full);
}

#[tokio::test]
async fn ipv6_clients_are_counted_by_their_network() {
    let pool = Pool::new(Settings { max_per_address: Some(1), ..config(10) });
    let _one = pool.acquire(None, address("2001:db8:0:1::1")).await.expect("a slot");
    let neighbour = pool.acquire(None, address("2001:db8:0:1:ffff::2")).await;
    assert_eq!(neighbour.expect_err("same /64"), Refusal::Address);
    assert!(pool.acquire(None, address("2001:db8:0:2::1")).await.is_ok());
    let _v4 = pool.acquire(None, address(HERE)).await.expect("a slot");
    let mapped = pool.acquire(None, address("::ffff:192.0.2.1")).await;
    assert_eq!(mapped.expect_err("the same client"), Refusal::Address);
}

#[tokio::test]
async fn who_has_left_is_forgotten() {
    let pool = Pool::new(Settings { max_per_identity: Some(1), max_per_address: Some(1), ..config(100_000) });
    let mut held = Vec::new();
    for i in 0..20_000_u32 {
        let identity = named(None, &format!("user-{i}"));
        let from = IpAddr::V4(std::net::Ipv4Addr::from_bits(i));
        held.push(pool.acquire(Some(&identity), from).await.expect("a slot"));
    }
    held.clear();
    let state = pool.0.state.lock();
    assert_eq!((state.taken, state.identities.by_key.len(), state.addresses.by_key.len()), (0, 0, 0));
    assert!(state.identities.by_key.capacity() < 4096 && state.identities.counts.capacity() < 4096);
    assert!(state.addresses.by_key.capacity() < 4096 && state.addresses.counts.capacity() < 4096);
}

/// Lets the others go on until it is so.
async fn until(so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came to that");
}

fn waiting(max: usize, waiting: usize) -> Pool {
    Pool::new(Settings { wait: Duration::from_secs(10), waiting, max_per_identity: Some(5), ..config(max) })
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_longest_is_served_first() {
    let pool = waiting(1, 10);
    let mut slot = here(&pool, None).await.expect("a slot");
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for i in 0..5 {
        let (of, served) = (pool.clone(), served.clone());
        tasks.spawn(async move {
            let permit = here(&of, None).await.expect("a slot in time");
            served.send((i, permit)).expect("somebody listens");
        });
        until(|| queued(&pool) == i + 1).await;
    }
    for expected in 0..5 {
        drop(slot);
        let (i, permit) = order.recv().await.expect("somebody is served");
        assert_eq!((i, pool.taken(), queued(&pool)), (expected, 1, 4 - expected));
        slot = permit;
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_in_time_and_number() {
    let pool = waiting(1, 1);
    let _slot = here(&pool, None).await.expect("a slot");
    let began = tokio::time::Instant::now();
    let (first, second) = tokio::join!(here(&pool, Some("a")), async {
        until(|| queued(&pool) == 1).await;
        let refused = here(&pool, None).await;
        (refused, began.elapsed())
    });
    assert_eq!(first.expect_err("never free"), Refusal::Full);
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert_eq!(second.0.expect_err("no room to wait"), Refusal::Full);
    assert_eq!(second.1, Duration::ZERO);
    assert_eq!((queued(&pool), pool.taken()), (0, 1));
    assert!(pool.0.state.lock().identities.by_key.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_queue_leaves_nothing_behind() {
    let pool = waiting(1, 10);
    let slot = here(&pool, None).await.expect("a slot");
    let mut gone = Box::pin(here(&pool, Some("a")));
    let mut stays = Box::pin(here(&pool, Some("b")));
    tokio::select! { biased; _ = &mut gone => panic!("full"), _ = &mut stays => panic!("full"), () = async {} => {} }
    assert_eq!(queued(&pool), 2);
    drop(gone);
    assert_eq!(queued(&pool), 1);
    drop(slot);
    // The slot is `b`'s now, who leaves without having looked.
    assert_eq!((queued(&pool), pool.taken()), (0, 1));
    drop(stays);
    assert_eq!(pool.taken(), 0);
    assert!(pool.0.state.lock().identities.by_key.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_a_race_no_cap_is_ever_exceeded() {
    for round in 0..50 {
        let wait = if round % 2 == 0 { Duration::ZERO } else { Duration::from_millis(3) };
        let limits = Settings { max_per_identity: Some(3), max_per_address: Some(4), wait, waiting: 5, ..config(7) };
        let pool = Pool::new(limits.clone());
        let inside: Arc<Vec<AtomicUsize>> = Arc::new((0..9).map(|_| AtomicUsize::new(0)).collect());
        let mut tasks = JoinSet::new();
        for task in 0..64_usize {
            let (pool, inside) = (pool.clone(), Arc::clone(&inside));
            tasks.spawn(async move {
                let (of, from) = (task % 4, task % 3);
                let identity = named(None, &of.to_string());
                let mut entered = 0;
                for turn in 0..20 {
                    let acquire = pool.acquire(Some(&identity), IpAddr::from([10, 0, 0, from as u8]));
                    // Some give up while they wait.
                    let patience = Duration::from_micros((task * 37 + turn * 101) as u64 % 4000);
                    let Ok(Ok(permit)) = tokio::time::timeout(patience, acquire).await else { continue };
                    entered += 1;
                    let counts = [(0, 7), (1 + of, 3), (5 + from, 4)];
                    for (at, cap) in counts {
                        assert!(inside[at].fetch_add(1, SeqCst) < cap, "cap {at} exceeded");
                    }
                    tokio::task::yield_now().await;
                    for (at, _) in counts {
                        inside[at].fetch_sub(1, SeqCst);
                    }
                    drop(permit);
                }
                entered
            });
        }
        let entered: usize = tasks.join_all().await.into_iter().sum();
        assert!(entered > 0);
        let state = pool.0.state.lock();
        assert_eq!((state.taken, state.queue.len()), (0, 0));
        assert!(state.identities.by_key.is_empty() && state.addresses.by_key.is_empty());
        assert!(state.identities.counts.is_empty() && state.addresses.counts.is_empty());
    }
}

#[tokio::test]
async fn other_caps_hold_at_once_and_let_those_in_who_wait() {
    let pool = Pool::new(Settings { wait: Duration::from_secs(60), ..config(1) });
    let first = here(&pool, None).await.expect("a slot");
    let (waiting, ()) = tokio::join!(here(&pool, None), async {
        while queued(&pool) == 0 {
            tokio::task::yield_now().await;
        }
        pool.configure(config(2));
    });
    let second = waiting.expect("a slot");
    pool.configure(config(1));
    assert_eq!((pool.taken(), pool.max()), (2, 1));
    drop(first);
    assert_eq!(here(&pool, None).await.expect_err("still full"), Refusal::Full);
    drop(second);
    assert!(here(&pool, None).await.is_ok());
}
