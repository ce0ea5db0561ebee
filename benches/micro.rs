//! Micro-benchmarks of the sync core: encoder, matcher, cursor and the hub's publishing.
//!
//! What they measure and how to repeat them stands in `README.md` beside this file. No socket, no runtime.

use std::time::Duration;

use brokercast::internals::{
    Check, Cursor, Envelope, Form, Hub, Index, Input, Origin, Owner, Point, Position, Revocation, Revocations, SourceKey, Tag, body,
};
use bytes::Bytes;
use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};

use fixture::{NOW, PAYLOAD, event, json, pattern};

#[path = "common/fixture.rs"]
mod fixture;

fn main() {
    divan::main();
}

const COUNTS: [usize; 3] = [1, 1_000, 100_000];

mod encoder {
    use super::*;

    fn encode(bencher: Bencher<'_, '_>, payload: Bytes, envelope: Envelope) {
        let event = event("plant.boiler.temperature", payload, envelope);
        let mut out = Vec::with_capacity(1024);
        bencher.counter(BytesCount::new(event.payload.len())).bench_local(|| {
            out.clear();
            body(&mut out, black_box(&event), Form::Routed, Origin { source: "plant", epoch: 7, seq: 123_456 });
            black_box(out.len())
        });
    }

    #[divan::bench(args = [Envelope::Json, Envelope::Raw, Envelope::CloudEvents])]
    fn json_payload(bencher: Bencher<'_, '_>, envelope: Envelope) {
        encode(bencher, json(), envelope);
    }

    #[divan::bench(args = [Envelope::Json, Envelope::Raw, Envelope::CloudEvents])]
    fn text_payload(bencher: Bencher<'_, '_>, envelope: Envelope) {
        encode(bencher, "so it is no JSON; ".repeat(12)[..PAYLOAD].to_owned().into(), envelope);
    }

    #[divan::bench(args = [Envelope::Json, Envelope::Raw, Envelope::CloudEvents])]
    fn binary_payload(bencher: Bencher<'_, '_>, envelope: Envelope) {
        encode(bencher, vec![0xff; PAYLOAD].into(), envelope);
    }
}

mod matcher {
    use super::*;

    /// One of `count` patterns matches the subject.
    fn find(bencher: Bencher<'_, '_>, count: usize, of: impl Fn(usize) -> String, subject: &str) {
        let mut index = Index::default();
        for n in 0..count {
            index.insert(&pattern(&of(n)), n as u32);
        }
        let mut found = Vec::new();
        index.find(subject.as_bytes(), &mut found);
        assert_eq!(found, [(count / 2) as u32]);
        bencher.bench_local(|| {
            found.clear();
            index.find(black_box(subject).as_bytes(), &mut found);
            black_box(found.len())
        });
    }

    #[divan::bench(args = COUNTS)]
    fn literal(bencher: Bencher<'_, '_>, count: usize) {
        find(bencher, count, |n| format!("plant.boiler.{n}"), &format!("plant.boiler.{}", count / 2));
    }

    #[divan::bench(args = COUNTS)]
    fn any_token(bencher: Bencher<'_, '_>, count: usize) {
        find(bencher, count, |n| format!("plant.*.{n}"), &format!("plant.boiler.{}", count / 2));
    }

    #[divan::bench(args = COUNTS)]
    fn tail(bencher: Bencher<'_, '_>, count: usize) {
        find(bencher, count, |n| format!("plant.{n}.>"), &format!("plant.{}.boiler.temperature", count / 2));
    }
}

mod cursor {
    use super::*;

    fn of(durable: usize) -> Cursor {
        let point = |n: usize| {
            let check = Check::of(&[&n.to_be_bytes()]);
            Point::At(Position { seq: 1_000_000 + n as u64, check: Some(check) })
        };
        Cursor {
            epoch: 0x1234_5678,
            volatile: Point::At(Position::unverified(123_456)),
            durable: (0..durable).map(|n| (Tag::of(&format!("source-{n}")), point(n))).collect(),
        }
    }

    #[divan::bench(args = [1, 7])]
    fn encode(bencher: Bencher<'_, '_>, durable: usize) {
        let cursor = of(durable);
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        bencher.bench_local(|| {
            out.clear();
            black_box(&cursor).encode(&mut scratch, &mut out);
            black_box(out.len())
        });
    }

    #[divan::bench(args = [1, 7])]
    fn decode(bencher: Bencher<'_, '_>, durable: usize) {
        let id = of(durable).to_id();
        assert_eq!(Cursor::from_id(&id), Ok(of(durable)));
        bencher.bench_local(|| Cursor::from_id(black_box(&id)));
    }
}

mod hub_publish {
    use super::*;

    fn publish<const BATCH: usize>(bencher: Bencher<'_, '_>, hub: &Hub, source: SourceKey, subject: &str) {
        let batch = vec![Input::Event(event(subject, json(), Envelope::Json)); BATCH];
        bencher
            .counter(ItemsCount::new(BATCH))
            .with_inputs(|| batch.clone())
            .bench_local_refs(|inputs| hub.publish(source, inputs, black_box(NOW)));
    }

    #[divan::bench(args = COUNTS, consts = [1, 64])]
    fn one_channel<const BATCH: usize>(bencher: Bencher<'_, '_>, subscribers: usize) {
        let (hub, source, seats) = fixture::hub(subscribers, |_| vec!["plant.>".to_owned()]);
        publish::<BATCH>(bencher, &hub, source, "plant.boiler");
        drop(seats);
    }

    #[divan::bench(args = COUNTS, consts = [1, 64])]
    fn distinct_channels_one_matches<const BATCH: usize>(bencher: Bencher<'_, '_>, subscribers: usize) {
        let (hub, source, seats) = fixture::hub(subscribers, |n| vec![format!("plant.{n}")]);
        publish::<BATCH>(bencher, &hub, source, &format!("plant.{}", subscribers / 2));
        drop(seats);
    }

    #[divan::bench(args = COUNTS, consts = [1, 64])]
    fn nobody_wants_it<const BATCH: usize>(bencher: Bencher<'_, '_>, subscribers: usize) {
        let (hub, source, seats) = fixture::hub(subscribers, |n| vec![format!("plant.{n}")]);
        publish::<BATCH>(bencher, &hub, source, "office.door");
        drop(seats);
    }
}

mod revocations {
    use super::*;

    /// A token that is not revoked, among `count` revocations of all kinds.
    #[divan::bench(args = [0, 100, 10_000])]
    fn look(bencher: Bencher<'_, '_>, count: u64) {
        let all = Revocations::default();
        for n in 0..count {
            let before = NOW.before(Duration::from_secs(7200 + n));
            let order = match n % 4 {
                0 => format!(r#"{{"token_id":"{n}","until":"1h"}}"#),
                1 => format!(r#"{{"identity":"{n}","until":"1h"}}"#),
                2 => format!(r#"{{"identity":"alice","issued_before":"{before}","until":"1h"}}"#),
                _ => format!(r#"{{"issuer":"idp","issued_before":"{before}","until":"1h"}}"#),
            };
            let revocation = Revocation::read(order.as_bytes(), NOW).unwrap_or_else(|e| panic!("{order}: {e}"));
            assert!(all.add(revocation, NOW).is_ok_and(|new| new));
        }
        let owner = Owner {
            identity: Some("alice".into()),
            issuer: Some("idp".into()),
            token_id: Some("t".into()),
            session_id: Some("s".into()),
            issued: Some(NOW),
            ..Owner::default()
        };
        bencher.bench_local(|| {
            let covered = all.cover(black_box(&owner), NOW);
            assert!(!covered);
        });
    }
}
