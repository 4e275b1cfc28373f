//! A password or token: it can be used, but neither printed nor logged.

use std::{fmt, fs, path::Path};

use serde::Deserialize;

use crate::error::{Error, Result};

/// What stands in its place wherever it would be shown.
const REDACTED: &str = "***";

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The usual words repeat the value that was not a text.
        let text = String::deserialize(deserializer);
        text.map(Secret).map_err(|_| serde::de::Error::custom("a secret is a text in quotes"))
    }
}

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// Reads a `..._file`; the end of its line is not part of the secret.
    ///
    /// Errors: `Config` when it can't be read or is empty.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|e| Error::config(format!("cannot read the secret in {}", path.display())).caused_by(e))?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(Error::config(format!("{} is empty; it should hold a secret", path.display())));
        }
        Ok(Secret(secret.into()))
    }

    /// The secret itself, for whoever it is meant for. It goes into no text that a person may see.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
        let e = toml::from_str::<std::collections::BTreeMap<String, Secret>>("password = 31337").unwrap_err();
        assert!(!e.message().contains("31337") && e.span().is_some(), "{e}");
    }

    #[test]
    fn a_file_s_last_line_end_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, " a b \r\n").unwrap();
        assert_eq!(Secret::from_file(&path).unwrap().expose(), " a b ");
        fs::write(&path, "\n").unwrap();
        let e = Secret::from_file(&path).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("is empty"), "{e}");
        assert!(Secret::from_file(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
