//! SIGHUP: the config is read again, and what can be taken up while the daemon runs is.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    thread,
};

use signal_hook::{consts::SIGHUP, iterator::Signals};

use super::check;
use crate::{
    config::Plan,
    decide::Decider,
    error::{Error, Result},
    model::{Decision, Model},
};

/// The table that is taken up; all others need a restart.
const TAKEN_UP: &str = "events";

/// The config's new `[events]`, checked, at every SIGHUP from now on.
pub fn on_hangup(path: &Path, model: &Model, hop: usize) -> Result<Receiver<Decision>> {
    let cannot = |e| Error::internal("cannot watch for SIGHUP").caused_by(e);
    let mut signals = Signals::new([SIGHUP]).map_err(cannot)?;
    let (tell, told) = mpsc::channel();
    let mut config = Config { path: path.to_owned(), known: tables(path) };
    let model = model.clone();
    let work = move || {
        for _ in signals.forever() {
            let events = |plan: &Plan| Decider::new(&model, &plan.events, hop).map(|_| plan.events.clone());
            match config.again(events) {
                // The recognizer is gone only when all is over.
                Ok(events) => drop(tell.send(events)),
                Err(e) => log::error!("{e}; going on with the settings as they were"),
            }
        }
    };
    thread::Builder::new().name("reload".into()).spawn(work).map_err(cannot)?;
    Ok(told)
}

struct Config {
    path: PathBuf,
    /// As it was at the start; but for [`TAKEN_UP`], that is what runs.
    known: toml::Table,
}

impl Config {
    /// What `make` makes of the config as it is now; only then is anything taken up.
    fn again<T>(&mut self, make: impl Fn(&Plan) -> Result<T>) -> Result<T> {
        let made = make(&check::load(&self.path)?)?;
        let new = tables(&self.path);
        let name = self.path.display();
        if self.known.get(TAKEN_UP) != new.get(TAKEN_UP) {
            log::info!("{name}: read again; its [{TAKEN_UP}] holds from now on");
        } else {
            log::info!("{name}: read again; nothing changed in its [{TAKEN_UP}]");
        }
        let waits = changed(&self.known, &new);
        if !waits.is_empty() {
            log::warn!("{name}: what changed in {} is taken up by a restart only", waits.join(", "));
        }
        if let Some(events) = new.get(TAKEN_UP) {
            self.known.insert(TAKEN_UP.into(), events.clone());
        } else {
            self.known.remove(TAKEN_UP);
        }
        Ok(made)
    }
}

/// The file's tables; none where it can't be read, which `check` tells of.
fn tables(path: &Path) -> toml::Table {
    fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The names of the tables that differ and need a restart.
fn changed(old: &toml::Table, new: &toml::Table) -> Vec<String> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).filter(|name| *name != TAKEN_UP).collect();
    names.sort();
    names.dedup();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).map(|name| format!("[{name}]")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_came_went_or_changed_are_named_and_events_is_none_of_them() {
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        let old = table("[model]\nhop = 8\n[web]\n[events]\nstart = 0.5\n[[camera]]\nid = \"a\"");
        let new = table("[model]\nhop = 16\n[mqtt]\n[events]\nstart = 0.6\n[[camera]]\nid = \"a\"");
        assert_eq!(changed(&old, &new), ["[model]", "[mqtt]", "[web]"]);
        assert!(changed(&old, &old).is_empty());
    }
}
