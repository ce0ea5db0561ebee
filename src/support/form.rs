//! Decoding of queries and forms (`application/x-www-form-urlencoded`). Pure; knows no parameter.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Returns the names and values of a query, decoded to bytes: what is not UTF-8 is for the caller to judge. Empty
/// pairs, as in `a=1&&b=2`, are left out.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        Cow::Owned(percent_decode_str(&spaced).collect())
    } else {
        percent_decode_str(text).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_decoded_to_bytes() {
        let decoded: Vec<_> = pairs("a=1&&b=x+y%2Bz&c&%64=%ff&=v&e=1=2").collect();
        let expected: [(&[u8], &[u8]); 6] = [(b"a", b"1"), (b"b", b"x y+z"), (b"c", b""), (b"d", b"\xff"), (b"", b"v"), (b"e", b"1=2")];
        let decoded: Vec<_> = decoded.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(decoded, expected);
    }
}
