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
        let text = text.map_err(|_| serde::de::Error::custom("a secret is a text in quotes"))?;
        expand(&text).map(Secret).map_err(serde::de::Error::custom)
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

/// Puts the environment's values in place of each `${VARIABLE}`.
///
/// Errors: `Config`, with the variable's name, when there is none.
pub fn expand(text: &str) -> Result<String> {
    expand_from(text, |name| std::env::var(name).ok())
}

fn expand_from(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let named = after.split_once('}').filter(|(name, _)| {
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        let Some((name, behind)) = named else {
            out.push_str("${");
            rest = after;
            continue;
        };
        let missing = || Error::config(format!("the environment has no variable {name}, that ${{{name}}} names"));
        out.push_str(&value(name).ok_or_else(missing)?);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether a config holds a secret as it is, and not by `${VARIABLE}` or a `..._file`.
pub fn stands_in(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let literal = |value: &str| !value.trim().trim_matches(['"', '\'']).is_empty() && !value.contains("${");
    let mut keys = lines.clone().filter_map(|line| line.split_once('='));
    let plain = |key: &str| ["password", "token", "secret", "authorization"].contains(&key.trim());
    // What is taken out of an address was a password.
    keys.any(|(key, value)| plain(key) && literal(value))
        || lines.into_iter().any(|line| !line.contains("${") && crate::source::redact(line) != *line)
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
    fn every_secret_of_a_config_may_name_a_variable() {
        #[derive(Debug, Deserialize)]
        struct Table {
            password: Secret,
        }
        let table: Table = toml::from_str("password = \"${CARGO_PKG_NAME}!\"").unwrap();
        assert_eq!(table.password.expose(), format!("{}!", std::env::var("CARGO_PKG_NAME").unwrap()));
        let e = toml::from_str::<Table>("password = \"hunter2${NOT_THERE}\"").unwrap_err();
        assert!(e.message().contains("no variable NOT_THERE") && !e.message().contains("hunter2"), "{e}");
    }

    #[test]
    fn variables_are_put_in_where_they_are_named() {
        let value = |name: &str| (name == "DOOR_1").then(|| "hunter2".to_owned());
        for (text, expanded) in [
            ("rtsp://u:${DOOR_1}@h/${DOOR_1}", "rtsp://u:hunter2@h/hunter2"),
            ("plain $DOOR_1 ${} ${1} ${a b} ${", "plain $DOOR_1 ${} ${1} ${a b} ${"),
            ("", ""),
        ] {
            assert_eq!(expand_from(text, value).unwrap(), expanded);
        }
        let e = expand_from("x${NOT_THERE}", value).unwrap_err();
        assert!(e.to_string().contains("no variable NOT_THERE"), "{e}");
    }

    #[test]
    fn a_config_that_holds_a_secret_is_told_from_one_that_names_it() {
        for text in ["source = \"rtsp://u:hunter2@h/s\"", "  token = \"abc\"", "password='x'"] {
            assert!(stands_in(text), "{text}");
        }
        for text in [
            "source = \"rtsp://u:${PW}@h/s\"",
            "token = \"${TOKEN}\"",
            "token_file = \"/run/token\"",
            "# token = \"abc\"",
            "source = \"rtsp://user@10.0.0.5/stream\"",
            "token = \"\"",
        ] {
            assert!(!stands_in(text), "{text}");
        }
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
