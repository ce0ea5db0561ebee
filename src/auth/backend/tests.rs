//! The desk: what is kept of whom, and for how long.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;

use super::desk::MAX;
use super::*;

const TIMING: Timing = Timing { cache: Duration::from_secs(30), recheck: Duration::from_secs(300) };
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn forward() -> Arc<[Forward]> {
    [Forward::Cookie("s".into())].into()
}

fn question(n: usize) -> Question {
    let headers = [(header::COOKIE, HeaderValue::try_from(format!("s={n}")).unwrap())].into_iter().collect();
    Question::of(&forward(), &headers, false).unwrap().unwrap()
}

fn answer(asked: u64, patterns: &str) -> Arc<Answer> {
    let (body, asked) =
        (format!("{{\"identity\": \"a\", \"subscribe\": \"{patterns}\"}}"), Asked { at: Timestamp::from_micros(asked), revocations: 0 });
    let open = Lists { subscribe: Vec::new(), publish: Vec::new() };
    Arc::new(Answer::read(body.as_bytes(), &open, asked, Timestamp::now()).unwrap())
}

fn ready(outcome: Outcome) -> Asking {
    async move { outcome }.boxed().shared()
}

/// Asks about `n`, and stores `outcome`. Returns whether there was need to.
fn ask(desk: &Desk, n: usize, outcome: &Outcome, now: Instant) -> bool {
    let of = desk.fingerprint(&question(n));
    let Found::Asking(_) = desk.find(of, true, now, || ready(outcome.clone())) else { return false };
    desk.store(of, 0, outcome, TIMING, now);
    true
}

fn owner(desk: &Desk, n: usize, of: &Arc<Answer>) -> Option<Arc<Owner>> {
    let known = || Known::new(question(n), ADDRESS, forward(), of.clone());
    desk.owner(desk.fingerprint(&question(n)), of.clone(), known).map(|(owner, _)| owner)
}

#[test]
fn what_was_answered_counts_for_its_time() {
    let (desk, now) = (Desk::default(), Instant::now());
    let granted = Outcome::Granted(answer(1, "a"));
    let after = |span| now + Duration::from_secs(span);
    assert!(ask(&desk, 1, &granted, now) && !ask(&desk, 1, &granted, after(29)) && ask(&desk, 1, &granted, after(30)));
    assert!(ask(&desk, 2, &Outcome::Refused, now) && !ask(&desk, 2, &granted, after(4)) && ask(&desk, 2, &granted, after(5)));
    assert!(ask(&desk, 3, &Outcome::Failed, now) && ask(&desk, 3, &Outcome::Failed, now));
    assert!(!ask(&desk, 2, &granted, after(6)));
    desk.begin_anew(now);
    assert!(ask(&desk, 2, &granted, after(6)), "another backend");
    assert!(ask(&desk, 2, &granted, after(6)), "nothing is kept of what the one before answers late");
}

#[test]
fn only_credentials_of_streams_are_asked_about_again_and_changes_are_told_once() {
    let (desk, now) = (Desk::default(), Instant::now());
    let first = answer(1, "a b");
    for n in 1..=3 {
        ask(&desk, n, &Outcome::Granted(first.clone()), now);
    }
    let (one, same) = (owner(&desk, 1, &first).unwrap(), owner(&desk, 1, &first).unwrap());
    assert!(Arc::ptr_eq(&one, &same));
    drop(owner(&desk, 2, &first));
    let later = now + Duration::from_secs(300);
    assert!(desk.due(now + Duration::from_secs(200)).is_empty());
    let due = desk.due(later);
    assert_eq!((due.len(), due[0].1.question.clone()), (1, question(1)));
    let learn = |outcome: Outcome| {
        assert!(matches!(desk.find(due[0].0, false, later, || ready(outcome.clone())), Found::Asking(_)));
        desk.store(due[0].0, 0, &outcome, TIMING, later);
        desk.take_changed().len()
    };
    let news = [
        Outcome::Granted(answer(2, "a b")),
        Outcome::Granted(answer(3, "a")),
        Outcome::Failed,
        Outcome::Granted(answer(4, "a")),
        Outcome::Refused,
        Outcome::Refused,
        Outcome::Granted(answer(5, "a")),
    ];
    assert_eq!(news.map(learn), [0, 1, 0, 0, 1, 0, 1]);
    assert!(desk.due(later).is_empty());
    ask(&desk, 1, &Outcome::Refused, later + Duration::from_secs(60));
    assert!(owner(&desk, 1, &first).is_none(), "refused meanwhile");
}

#[test]
fn invented_credentials_neither_fill_the_memory_nor_push_out_those_that_were_granted_something() {
    let (desk, now) = (Desk::default(), Instant::now());
    let granted = answer(1, "a");
    for n in 0..100 {
        ask(&desk, n, &Outcome::Granted(granted.clone()), now);
    }
    let held = owner(&desk, 7, &granted).unwrap();
    for n in 100..20_000 {
        assert!(ask(&desk, n, &Outcome::Refused, now));
    }
    assert!(desk.len() <= MAX + 1, "{}", desk.len());
    assert!((0..100).all(|n| !ask(&desk, n, &Outcome::Refused, now)));
    for n in 100_000..120_000 {
        ask(&desk, n, &Outcome::Granted(granted.clone()), now);
    }
    assert!(desk.len() <= MAX + 1, "{}", desk.len());
    assert!(Arc::ptr_eq(&held, &owner(&desk, 7, &granted).unwrap()), "one of which a stream is open stays");
}

#[test]
fn with_more_streams_than_are_remembered_without_them_newcomers_forget_nothing() {
    let (desk, now) = (Desk::default(), Instant::now());
    let granted = answer(1, "a");
    let mut held = Vec::new();
    for n in 0..MAX + 100 {
        ask(&desk, n, &Outcome::Granted(granted.clone()), now);
        held.push(owner(&desk, n, &granted).unwrap());
    }
    let newcomers = MAX + 100..MAX + 1100;
    for n in newcomers.clone() {
        assert!(ask(&desk, n, &Outcome::Granted(granted.clone()), now));
    }
    assert!(newcomers.into_iter().all(|n| !ask(&desk, n, &Outcome::Refused, now)), "each is known");
    for n in 0..3 * MAX {
        ask(&desk, 10 * MAX + n, &Outcome::Granted(granted.clone()), now);
    }
    assert!(desk.len() <= held.len() + MAX, "{}", desk.len());
}

#[test]
fn a_question_that_nobody_waits_for_any_more_is_put_again() {
    let (desk, now) = (Desk::default(), Instant::now());
    let of = desk.fingerprint(&question(1));
    let never = || std::future::pending().boxed().shared();
    let Found::Asking(one) = desk.find(of, true, now, never) else { panic!() };
    let Found::Asking(two) = desk.find(of, true, now, || panic!("one at a time")) else { panic!() };
    assert!(one.ptr_eq(&two));
    drop((one, two));
    assert!(matches!(desk.find(of, true, now, never), Found::Asking(_)));
}

/// A backend that grants this pattern to everybody.
async fn serving(pattern: &'static str, tasks: &mut tokio::task::JoinSet<()>) -> Backend {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    tasks.spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            assert_ne!(socket.read(&mut head).await.unwrap(), 0);
            let body = format!(r#"{{"identity": "a", "subscribe": "{pattern}"}}"#);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let Timing { cache, recheck } = TIMING;
    let settings = Settings { url, forward: forward(), timeout: Duration::from_secs(2), cache, recheck };
    Backend::new(settings, &Lists { subscribe: Vec::new(), publish: Vec::new() })
}

#[tokio::test]
async fn what_a_backend_that_was_exchanged_answers_does_not_count_for_the_new_one() {
    let mut tasks = tokio::task::JoinSet::new();
    let before = serving("old.>", &mut tasks).await;
    let after = serving("new.>", &mut tasks).await.in_place_of(&before);
    let revocations = Arc::default();
    let granted = async |backend: &Backend| backend.ask(question(1), ADDRESS, &revocations).await.unwrap().subscribe[0].to_string();
    // A request that was under way when the configuration was exchanged.
    assert_eq!(granted(&before).await, "old.>");
    assert_eq!(granted(&after).await, "new.>");
}

#[tokio::test]
async fn what_is_due_is_asked_at_once_and_answered_also_where_another_one_takes_the_place() {
    let mut tasks = tokio::task::JoinSet::new();
    let mut backend = serving("a.>", &mut tasks).await;
    backend.settings = Arc::new(Settings { recheck: Duration::ZERO, ..Settings::clone(&backend.settings) });
    let (revocations, replaced) = (Arc::default(), CancellationToken::new());
    let grant = backend.ask(question(1), ADDRESS, &revocations).await.unwrap();
    let mut recheck = Box::pin(backend.recheck(&revocations, &replaced, |_| ()));
    assert!(recheck.as_mut().now_or_never().is_none());
    assert_eq!(backend.load().in_flight, 1, "asked at once");
    let newer = backend.clone().in_place_of(&backend);
    let mut newers = Box::pin(newer.recheck(&revocations, &replaced, |_| ()));
    assert!(newers.as_mut().now_or_never().is_none());
    replaced.cancel();
    tokio::join!(recheck, newers);
    let granted = backend.load().questions[Became::Granted as usize];
    assert_eq!(granted, ("granted", 2), "the question that was under way was answered, and put once");
    drop(grant);
}
