//! Enums whose variants are words, such as the values of a metric's label.

/// Writes an enum, `ALL` of its variants in their order, and the word of each.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them.
            $vis const ALL: &[Self] = &[$(Self::$variant),+];
            /// The word.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

pub(crate) use words;
