use proptest::prelude::*;

use super::*;

fn point() -> impl Strategy<Value = Point> {
    prop_oneof![
        (any::<u64>(), prop::option::of(0u32..1 << 24)).prop_map(|(seq, c)| Point::At(Position { seq, check: c.map(Check) })),
        Just(Point::Earliest),
        any::<u64>().prop_map(Point::Since),
        Just(Point::Last),
    ]
}

fn cursors() -> impl Strategy<Value = Cursor> {
    (any::<u32>(), point(), prop::collection::btree_map(any::<u16>(), point(), 0..12)).prop_map(|(epoch, volatile, durable)| Cursor {
        epoch,
        volatile,
        durable: durable.into_iter().map(|(t, p)| (Tag(t), p)).collect(),
    })
}

proptest! {
    #[test]
    fn ids_come_back_as_the_cursor_they_were(cursor in cursors()) {
        let id = cursor.to_id();
        prop_assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        prop_assert_eq!(Cursor::from_id(&id), Ok(cursor));
    }

    #[test]
    fn anything_at_all_is_read_without_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(cursor) = Cursor::from_id(&text) {
            prop_assert_eq!(cursor.to_id(), text);
        }
        let mut all = bytes.clone();
        all.extend(fnv16(&bytes).to_be_bytes());
        if let Ok(cursor) = Cursor::from_id(&URL_SAFE_NO_PAD.encode(&all)) {
            prop_assert_eq!(cursor.to_id(), URL_SAFE_NO_PAD.encode(&all));
        }
    }
}

#[test]
fn a_cut_or_changed_id_is_no_cursor() {
    let cursor = Cursor {
        epoch: 7,
        volatile: Point::At(Position::unverified(99)),
        durable: vec![(Tag::of("orders"), Point::At(Position { seq: 1234, check: Some(Check::of(&[b"x"])) }))],
    };
    let id = cursor.to_id();
    for n in 0..id.len() {
        assert_eq!(Cursor::from_id(&id[..n]), Err(CursorError), "{n}");
        let mut other = id.clone().into_bytes();
        other[n] = if other[n] == b'A' { b'B' } else { b'A' };
        let other = String::from_utf8(other).expect("ascii");
        assert_ne!(Cursor::from_id(&other), Ok(cursor.clone()), "{n}");
    }
    for foreign in ["", "1", "0-0", "12345", "-", "e30", "https://example.com", &"A".repeat(5000)] {
        assert_eq!(Cursor::from_id(foreign), Err(CursorError), "{foreign}");
    }
}

#[test]
fn seven_durable_sources_fit_128_bytes() {
    let cursor = |n: u16| Cursor {
        epoch: u32::MAX,
        volatile: Point::At(Position::unverified((1 << 32) - 1)),
        durable: (0..n).map(|i| (Tag(i), Point::At(Position { seq: (1 << 48) - 1, check: Some(Check(0xff_ffff)) }))).collect(),
    };
    assert!(cursor(7).to_id().len() <= 128, "{}", cursor(7).to_id().len());
    // More of them make a longer id that is read all the same.
    let more = cursor(40);
    assert_eq!(Cursor::from_id(&more.to_id()), Ok(more));
}

#[test]
fn checks_differ_wherever_messages_do() {
    let (mut seen, mut twice) = (std::collections::HashSet::new(), 0);
    let mut check = |parts: &[&[u8]]| twice += u32::from(!seen.insert(Check::of(parts)));
    let long = vec![7u8; 1000];
    for n in 0..1000u32 {
        check(&[b"orders.eu", n.to_string().as_bytes()]);
        check(&[b"orders.eu", b"", &n.to_be_bytes()]);
        let mut other = long.clone();
        other[n as usize] ^= 1;
        check(&[&other]);
    }
    for n in 0..16 {
        check(&[&[0; 16][..n]]);
        check(&[&[0; 16][n..], &[0; 16][..n]]);
    }
    // 3032 of 16.7 million: 0.3 are expected to meet.
    assert!(twice <= 3, "{twice}");
    assert_eq!(format!("{:?}", Check::of(&[b"the same", b"in every version"])), "77c9f4");
}
