//! The oracle: what a client wrote down, held against what the brokers' logs hold.
//!
//! Pure. Knows nothing of processes or sockets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde_json::Value;

/// A line of a client's notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// An event: who wrote it, as which number, under which subject.
    Event { source: String, writer: u32, n: u64, subject: String },
    /// `brokercast.gap`
    Gap { source: String, reason: String },
    /// Anything else that happened: for people who read the notes.
    Other,
}

/// One message of a source's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub writer: u32,
    pub n: u64,
    pub subject: String,
}

/// What a source really held.
#[derive(Debug, Default)]
pub struct Truth {
    /// Whether the source has a log of its own: then nothing may be missing and no gap told, but for what was removed.
    pub durable: bool,
    /// In the log's order. Of a source without a log: in the writer's.
    pub entries: Vec<Entry>,
    /// Entries that were removed from the log while the test ran.
    pub removed: HashSet<usize>,
}

/// How often each thing happened that must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    pub events: u64,
    pub gaps: u64,
    /// Expected, never seen, in no declared gap: at the end of what was seen.
    pub lost: u64,
    pub duplicated: u64,
    pub misordered: u64,
    /// Outside what the client asked for or may see.
    pub unauthorised: u64,
    /// A gap of a source with a log that had lost nothing.
    pub false_gaps: u64,
    /// Expected, missing between two that were seen, without a gap between them.
    pub undeclared_holes: u64,
    /// Seen, though nobody wrote it.
    pub phantoms: u64,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.faults() == 0
    }

    pub fn faults(&self) -> u64 {
        self.lost + self.duplicated + self.misordered + self.unauthorised + self.false_gaps + self.undeclared_holes + self.phantoms
    }

    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.gaps += other.gaps;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.misordered += other.misordered;
        self.unauthorised += other.unauthorised;
        self.false_gaps += other.false_gaps;
        self.undeclared_holes += other.undeclared_holes;
        self.phantoms += other.phantoms;
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events, {} gaps: lost {}, duplicated {}, misordered {}, unauthorised {}, false gaps {}, undeclared holes {}, phantoms {}",
            self.events,
            self.gaps,
            self.lost,
            self.duplicated,
            self.misordered,
            self.unauthorised,
            self.false_gaps,
            self.undeclared_holes,
            self.phantoms
        )
    }
}

/// Whether a subject is in a pattern's set; written here anew, so that the bridge's own matcher is not its judge.
pub fn matches(pattern: &str, subject: &str) -> bool {
    let (pattern, subject): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), subject.split('.').collect());
    match pattern.split_last() {
        Some((&">", head)) => subject.len() > head.len() && head.iter().zip(&subject).all(|(p, s)| *p == "*" || p == s),
        _ => pattern.len() == subject.len() && pattern.iter().zip(&subject).all(|(p, s)| *p == "*" || p == s),
    }
}

/// Reads a client's notes; a last line that was cut by a kill does not count.
pub fn read_notes(text: &str) -> Vec<Note> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(read_note).collect()
}

fn read_note(line: &str) -> Note {
    let fields: Vec<_> = line.split('\t').collect();
    match fields[..] {
        ["E", _, source, writer, n, subject] => {
            Note::Event { source: source.into(), writer: writer.parse().unwrap(), n: n.parse().unwrap(), subject: subject.into() }
        }
        ["G", _, json] => {
            let gap: Value = serde_json::from_str(json).unwrap();
            Note::Gap { source: gap["source"].as_str().unwrap().into(), reason: gap["reason"].as_str().unwrap().into() }
        }
        ["I" | "C" | "O" | "X", ..] => Note::Other,
        _ => panic!("no note: {line:?}"),
    }
}

/// Judges one client, which asked for these patterns and saw everything from the beginning of each source.
pub fn judge(patterns: &[String], notes: &[Note], truths: &BTreeMap<String, Truth>) -> Verdict {
    let wanted = |subject: &str| patterns.iter().any(|p| matches(p, subject));
    let mut total = Verdict::default();
    for (name, truth) in truths {
        let places: HashMap<(u32, u64), usize> = truth.entries.iter().enumerate().map(|(i, e)| ((e.writer, e.n), i)).collect();
        let expected: Vec<bool> = truth.entries.iter().map(|e| wanted(&e.subject)).collect();
        let mut seen = vec![false; truth.entries.len()];
        // Everything before this place has been seen, declared missing, or complained of.
        let mut next = 0;
        let mut declared = 0_u64;
        for note in notes {
            match note {
                Note::Gap { source, .. } if source == name || source == "*" => {
                    total.gaps += 1;
                    declared += 1;
                }
                Note::Event { source, writer, n, subject } if source == name => {
                    total.events += 1;
                    if !wanted(subject) {
                        total.unauthorised += 1;
                    }
                    let Some(&place) = places.get(&(*writer, *n)) else {
                        total.phantoms += 1;
                        continue;
                    };
                    if truth.entries[place].subject != *subject {
                        total.phantoms += 1;
                    }
                    if std::mem::replace(&mut seen[place], true) {
                        total.duplicated += 1;
                        continue;
                    }
                    if place < next {
                        total.misordered += 1;
                        continue;
                    }
                    let (missing, false_gap) = hole(truth, next..place, declared, |i| expected[i] && !seen[i]);
                    total.undeclared_holes += missing;
                    total.false_gaps += false_gap;
                    declared = 0;
                    next = place + 1;
                }
                _ => {}
            }
        }
        let (missing, false_gap) = hole(truth, next..expected.len(), declared, |i| expected[i] && !seen[i]);
        total.lost += missing;
        total.false_gaps += false_gap;
    }
    total
}

/// Of the places between two that were seen: how many are missing without excuse, and how many gaps were false.
fn hole(truth: &Truth, places: Range<usize>, declared: u64, missing: impl Fn(usize) -> bool) -> (u64, u64) {
    if !truth.durable {
        let count = if declared == 0 { places.filter(|i| missing(*i)).count() } else { 0 };
        return (count as u64, 0);
    }
    let removed = places.clone().any(|i| truth.removed.contains(&i));
    // A gap excuses what was removed from the log, and nothing that it still held.
    let excused = |i: usize| declared > 0 && truth.removed.contains(&i);
    let count = places.filter(|i| missing(*i) && !excused(*i)).count();
    (count as u64, if removed { 0 } else { declared })
}

/// Shows that the checker finds each kind of fault, and nothing where there is none.
pub fn check_the_checker() {
    let entry = |i: u64| Entry { writer: (i % 2) as u32, n: i / 2, subject: format!("t.{}", i % 4) };
    let truth = |durable| Truth { durable, entries: (0..40).map(entry).collect(), removed: HashSet::new() };
    let truths = |durable| BTreeMap::from([("s".to_owned(), truth(durable))]);
    let note = |e: &Entry| Note::Event { source: "s".into(), writer: e.writer, n: e.n, subject: e.subject.clone() };
    let patterns = vec!["t.1".to_owned(), "t.2".to_owned()];
    let clean: Vec<Note> = truth(true).entries.iter().filter(|e| e.subject == "t.1" || e.subject == "t.2").map(note).collect();
    let gap = |reason: &str| Note::Gap { source: "s".into(), reason: reason.into() };
    let judge_with = |durable: bool, change: &dyn Fn(&mut Vec<Note>)| {
        let mut notes = clean.clone();
        change(&mut notes);
        judge(&patterns, &notes, &truths(durable))
    };
    let base = Verdict { events: 20, ..Verdict::default() };
    assert_eq!(judge_with(true, &|_| {}), base);
    assert_eq!(judge_with(true, &|n| drop(n.remove(5))), Verdict { events: 19, undeclared_holes: 1, ..base });
    assert_eq!(judge_with(true, &|n| drop(n.pop())), Verdict { events: 19, lost: 1, ..base });
    assert_eq!(judge_with(true, &|n| n.clear()), Verdict { lost: 20, ..Verdict::default() });
    assert_eq!(judge_with(true, &|n| n.insert(6, n[5].clone())), Verdict { events: 21, duplicated: 1, ..base });
    assert_eq!(judge_with(true, &|n| n.insert(19, n[0].clone())), Verdict { events: 21, duplicated: 1, ..base });
    let swapped = judge_with(true, &|n| n.swap(7, 8));
    assert_eq!((swapped.misordered, swapped.undeclared_holes), (1, 1), "{swapped}");
    let foreign = note(&entry(3));
    assert_eq!(judge_with(true, &|n| n.insert(2, foreign.clone())), Verdict { events: 21, unauthorised: 1, ..base });
    let phantom = Note::Event { source: "s".into(), writer: 9, n: 1, subject: "t.1".into() };
    assert_eq!(judge_with(true, &|n| n.insert(2, phantom.clone())), Verdict { events: 21, phantoms: 1, ..base });
    assert_eq!(judge_with(true, &|n| n.insert(5, gap("reset"))), Verdict { gaps: 1, false_gaps: 1, ..base });
    assert_eq!(judge_with(true, &|n| n.push(gap("reset"))), Verdict { gaps: 1, false_gaps: 1, ..base });
    // A hole in a log that held all is not excused by a gap.
    let excused = judge_with(true, &|n| n[5] = gap("retention"));
    assert_eq!((excused.false_gaps, excused.undeclared_holes), (1, 1), "{excused}");
    // A source without a log: a hole must lie in a gap, and may.
    assert_eq!(judge_with(false, &|n| n[5] = gap("restart")), Verdict { events: 19, gaps: 1, ..base });
    assert_eq!(judge_with(false, &|n| drop(n.remove(5))), Verdict { events: 19, undeclared_holes: 1, ..base });
    assert_eq!(judge_with(false, &|n| n[19] = gap("restart")), Verdict { events: 19, gaps: 1, ..base });
    // What was removed from the log excuses a gap, and only a declared one.
    let mut removed = truths(true);
    removed.get_mut("s").unwrap().removed = [9, 10].into();
    let (mut declared, mut silent) = (clean.clone(), clean.clone());
    assert_eq!(declared.splice(4..6, [gap("retention")]).count(), 2);
    assert_eq!(silent.drain(4..6).count(), 2);
    assert_eq!(judge(&patterns, &declared, &removed), Verdict { events: 18, gaps: 1, ..base });
    assert_eq!(judge(&patterns, &silent, &removed), Verdict { events: 18, undeclared_holes: 2, ..base });
    // Notes survive a line that was cut.
    assert_eq!(read_notes("E\tid\ts\t1\t2\tt.1\nI\tx\nG\tid\t{\"source\":\"s\",\"reason\":\"reset\"}\nE\tid\ts\t1").len(), 3);
    assert!(matches("a.*.>", "a.b.c.d") && !matches("a.*.>", "a.b") && matches(">", "a") && !matches("a", "a.b") && !matches("a.*", "a"));
}
