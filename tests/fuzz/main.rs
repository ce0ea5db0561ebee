//! Every reader of outside bytes, fed with the corpus of `fuzz/` and with what chance makes of it. `scripts/fuzz` looks for
//! more with libFuzzer, for as long as you like; what it finds goes into the corpus.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this whole crate is tests")]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

#[path = "../../fuzz/checks.rs"]
mod checks;

/// Inputs made of the corpus for each target.
const INPUTS: usize = 3000;

/// Shows the input that a check failed for.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {}", self.0, self.1.escape_ascii());
        }
    }
}

fn run(name: &str) {
    let (_, check) = checks::ALL.into_iter().find(|(of, _)| *of == name).unwrap();
    let check = |input: &[u8]| {
        let _shown = Shown(name, input);
        check(input);
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty(), "{name}");
    check(&[]);
    corpus.iter().for_each(|input| check(input));
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..INPUTS {
        let mut input = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=input.len());
            match random.random_range(0..5) {
                0 => input.insert(at, random.random()),
                1 if at < input.len() => {
                    input.remove(at);
                }
                2 => input.truncate(at),
                3 => {
                    let other = &corpus[random.random_range(0..corpus.len())];
                    input.truncate(at);
                    input.extend_from_slice(&other[random.random_range(0..=other.len())..]);
                }
                _ => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'.', *byte ^ 1][random.random_range(0..8)];
                    }
                }
            }
        }
        check(&input);
    }
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_check_has_its_fuzz_target_its_corpus_and_its_test() {
            let here = [$(stringify!($name)),+];
            assert_eq!(checks::ALL.map(|(name, _)| name), here);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut targets: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            targets.sort();
            let mut names = here.to_vec();
            names.sort_unstable();
            assert_eq!(targets.iter().map(|target| target.file_stem().unwrap().to_str().unwrap()).collect::<Vec<_>>(), names);
        }
    };
}

targets!(sse, cursor, pattern, token, sections, headers, announced, configuration, unpack);
