//! Names of parameters that somebody most likely meant otherwise. Pure.

/// Of shorter names one letter would make any other name.
const SHORTEST: usize = 4;

/// The one of `names` that is meant by a name that is none of them: it differs in case or separators, is a plural, has the
/// brackets that some libraries put behind lists, or is one letter away.
pub(super) fn meant<'n>(name: &[u8], names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let name = bare(name);
    names.into_iter().find(|known| {
        let known = bare(known.as_bytes());
        name == known || (known.len() >= SHORTEST && one_off(&name, &known))
    })
}

/// In lower case, without separators, and without `[]` or `[0]` at its end.
fn bare(name: &[u8]) -> Vec<u8> {
    let name = name.trim_ascii();
    let end = if name.ends_with(b"]") { name.iter().position(|byte| *byte == b'[') } else { None };
    let name = &name[..end.unwrap_or(name.len())];
    name.iter().filter(|byte| !matches!(byte, b'_' | b'-')).map(u8::to_ascii_lowercase).collect()
}

/// Whether one letter was added, left out or exchanged, or two neighbours swapped.
fn one_off(a: &[u8], b: &[u8]) -> bool {
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    match (&a[..a.len() - end], &b[..b.len() - end]) {
        ([_] | [], [_] | []) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_near_miss_names_what_was_meant_and_other_names_pass() {
        let names = ["subject", "since", "envelope", "last_event_id", "jwt"];
        let meant = |name: &str| super::meant(name.as_bytes(), names);
        for (name, right) in [
            ("subjects", "subject"),
            ("Subject", "subject"),
            ("SUBJECTS", "subject"),
            ("subject[]", "subject"),
            ("subjects[0]", "subject"),
            ("subjet", "subject"),
            ("sbuject", "subject"),
            ("subjekt", "subject"),
            ("subjject", "subject"),
            ("ubject", "subject"),
            (" subject", "subject"),
            ("Since", "since"),
            ("sinse", "since"),
            ("envelop", "envelope"),
            ("last-event-id", "last_event_id"),
            ("Last-Event-ID", "last_event_id"),
            ("lasteventid", "last_event_id"),
            ("LastEventId", "last_event_id"),
            ("last_event_ids", "last_event_id"),
            ("JWT", "jwt"),
            ("jwt[]", "jwt"),
        ] {
            assert_eq!(meant(name), Some(right), "{name}");
        }
        for name in [
            "",
            "_",
            "t",
            "v",
            "x",
            "cb",
            "utm_source",
            "topic",
            "sub",
            "object",
            "sinceer",
            "subject_id",
            "id",
            "jw",
            "jet",
            "[]",
            "event",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }
}
