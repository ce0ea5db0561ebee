//! Random numbers.
//!
//! In unit tests they can follow from a seed: see [`seed`].

#[cfg(not(test))]
pub(crate) use rand::random_range as in_range;
#[cfg(test)]
pub(crate) use seeded::{in_range, seed};

#[cfg(test)]
mod seeded {
    use std::cell::RefCell;

    use rand::distr::uniform::{SampleRange, SampleUniform};
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    thread_local! {
        static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
    }

    /// From now on all random numbers of this thread follow from `seed`.
    pub(crate) fn seed(seed: u64) {
        SEEDED.set(Some(SmallRng::seed_from_u64(seed)));
    }

    /// A random number of this range.
    pub(crate) fn in_range<T: SampleUniform, R: SampleRange<T>>(range: R) -> T {
        SEEDED.with_borrow_mut(|seeded| match seeded {
            Some(rng) => rng.random_range(range),
            None => rand::random_range(range),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{in_range, seed};

    #[test]
    fn a_seed_decides_what_follows() {
        let draw = |number| {
            seed(number);
            [in_range(0..u64::MAX), in_range(0..u64::MAX)]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
