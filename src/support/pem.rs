//! Why a PEM file cannot be used, in words that quote nothing of it: it may be a private key.

use rustls::pki_types::pem::Error;

/// As the library's error, but without the lines of the file that this one prints.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PemError {
    /// The system cannot read it.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// A line that begins as a BEGIN line does goes on differently.
    #[error("a line with BEGIN does not end behind its dashes; line breaks must not be written as \\n")]
    Begin,
    /// A section goes on to the end of the file.
    #[error("a section has no END line; it must be a line of its own")]
    End,
    /// The text between two such lines.
    #[error("what a section holds is not base64")]
    Base64,
    /// Nothing of the kind that is wanted.
    #[error("it holds none")]
    Missing,
    /// Anything else.
    #[error("it is no PEM file, or is too large")]
    Other,
}

impl From<Error> for PemError {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => Self::Io(error),
            Error::IllegalSectionStart { .. } => Self::Begin,
            Error::MissingSectionEnd { .. } => Self::End,
            Error::Base64Decode(_) => Self::Base64,
            Error::NoItemsFound => Self::Missing,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::support::causes::chain;

    /// A key whose line breaks were lost on the way, each time in another manner.
    pub(crate) fn broken(pem: &str) -> [String; 4] {
        let base64 = |text: &str| text.replacen("\nM", "\n!", 1);
        [pem.replace('\n', ""), pem.replace('\n', "\\n"), pem.replace("\n-----END", "-----END"), base64(pem)]
    }

    /// Whether a text quotes a key: itself, or as a list of its bytes.
    pub(crate) fn quotes(text: &str, pem: &str) -> bool {
        let middle: String = pem.lines().nth(1).unwrap_or_default().chars().skip(4).take(8).collect();
        let list = middle.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        text.contains(&middle) || text.contains(&list)
    }

    #[test]
    fn an_error_quotes_nothing_of_a_key() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let read = |text: &str| PrivateKeyDer::from_pem_slice(text.as_bytes()).map(drop);
        let errors = broken(&pem).map(|text| read(&text).unwrap_err());
        assert!(quotes(&errors[0].to_string(), &pem) && quotes(&errors[1].to_string(), &pem), "the library's do");
        let said = errors.map(|error| chain(&PemError::from(error)));
        assert!(said.iter().all(|said| !quotes(said, &pem)), "{said:?}");
        for (said, part) in said.iter().zip(["no END line", "written as \\n", "no END line", "not base64"]) {
            assert!(said.contains(part), "{said}");
        }
        let missing = PemError::from(PrivateKeyDer::from_pem_file("/nowhere").unwrap_err());
        assert!(chain(&missing).contains("No such file"), "{missing}");
        assert_eq!(PemError::from(read("").unwrap_err()).to_string(), "it holds none");
    }
}
