//! What is so now, beside the events that happened: each value is published retained, the latest wins, and nothing of it
//! has to be kept over a restart. And the switches that pause cameras, which are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    camera::Camera,
    event::{Event, Phase},
    journal::write_whole,
};

/// Values by their topic below the device's.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// Labels that have a topic of their own for each camera.
    watched: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, String>,
    /// The actions that are open, the newest last: id and label.
    open: BTreeMap<String, Vec<(String, String)>>,
}

impl Board {
    pub fn new<'a>(cameras: impl IntoIterator<Item = &'a str>, watched: &[String]) -> Self {
        let board = Board { state: Mutex::default(), changed: watch::Sender::new(0), watched: watched.to_vec() };
        cameras.into_iter().for_each(|camera| board.show(camera, &[]));
        board
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, topic: &str, value: impl Into<String>) {
        let value = value.into();
        let mut state = self.lock();
        if state.values.get(topic) != Some(&value) {
            state.values.insert(topic.into(), value);
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// What an event changes.
    pub fn event(&self, event: &Event) {
        let open: Vec<(String, String)> = {
            let mut state = self.lock();
            let open = state.open.entry(event.camera.clone()).or_default();
            match event.phase {
                Phase::End => open.retain(|(id, _)| *id != event.id),
                _ if open.iter().any(|(id, _)| *id == event.id) => return,
                _ => open.push((event.id.clone(), event.label.clone())),
            }
            open.clone()
        };
        self.show(&event.camera, &open);
    }

    fn show(&self, camera: &str, open: &[(String, String)]) {
        self.set(&format!("{camera}/state"), open.last().map_or("none", |(_, label)| label.as_str()));
        for label in &self.watched {
            let on = open.iter().any(|(_, l)| l == label);
            self.set(&format!("{camera}/action/{}", slug(label)), if on { "ON" } else { "OFF" });
        }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What differs from what was published, which is brought up to date.
    pub fn news(&self, published: &mut BTreeMap<String, String>) -> Vec<(String, String)> {
        let state = self.lock();
        let new = |(topic, value): &(&String, &String)| published.get(*topic) != Some(*value);
        let news: Vec<_> = state.values.iter().filter(new).map(|(t, v)| (t.clone(), v.clone())).collect();
        published.extend(news.iter().cloned());
        news
    }
}

/// A label as part of a topic or an id.
pub fn slug(label: &str) -> String {
    label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// The switches of the cameras: one that is off is paused, nothing of it is decoded, over restarts as well. They are kept
/// in a file of the journal's folder and not in retained commands: a broker that has lost its memory must not switch on a
/// camera in somebody's bedroom.
#[derive(Debug)]
pub struct Switches {
    cameras: Vec<Arc<Camera>>,
    path: PathBuf,
    board: Arc<Board>,
}

impl Switches {
    /// Pauses the cameras that were paused when the daemon ended, also where nothing `remote` is there any more to switch
    /// them on: whoever removes a broker does not mean to look into a bedroom.
    pub fn new(cameras: &[Arc<Camera>], folder: &Path, board: Arc<Board>, remote: bool) -> Self {
        let switches = Switches { cameras: cameras.to_vec(), path: folder.join("paused.json"), board };
        for camera in cameras {
            let paused = switches.saved().contains(&camera.id);
            if paused && remote {
                log::warn!("camera {}: paused, as it was switched off; its switch turns it on", camera.id);
            } else if paused {
                log::warn!(
                    "camera {}: paused, as it was switched off by MQTT, and without [mqtt] it has no switch: to turn it on \
                     remove {} and restart",
                    camera.id,
                    switches.path.display()
                );
            }
            camera.pause(paused);
            switches.show(camera);
        }
        switches
    }

    /// `ON` or `OFF` for a camera; whatever else is told and passed over. Neither the name nor the payload of a stranger's
    /// message is logged: they may be long, and look like lines of ours.
    pub fn command(&self, camera: &str, payload: &[u8]) {
        let Some(camera) = self.cameras.iter().find(|c| c.id == camera) else {
            return log::warn!("a switch came by MQTT for a camera that is not there");
        };
        let on = match payload {
            b"ON" => true,
            b"OFF" => false,
            _ => return log::warn!("camera {}: its switch takes ON or OFF, not what came by MQTT", camera.id),
        };
        if camera.is_paused() == on {
            log::info!("camera {}: switched {}", camera.id, if on { "on" } else { "off" });
            camera.pause(!on);
            self.save(camera, !on);
        }
        self.show(camera);
    }

    fn show(&self, camera: &Camera) {
        self.board.set(&format!("{}/watching", camera.id), if camera.is_paused() { "OFF" } else { "ON" });
    }

    fn saved(&self) -> BTreeSet<String> {
        let text = fs::read(&self.path).unwrap_or_default();
        if text.is_empty() {
            return BTreeSet::new();
        }
        serde_json::from_slice(&text).unwrap_or_else(|e| {
            log::error!("{}: {e}; no camera is paused", self.path.display());
            BTreeSet::new()
        })
    }

    fn save(&self, camera: &Camera, paused: bool) {
        // Cameras of other configs stay as they are.
        let mut saved = self.saved();
        match paused {
            true => saved.insert(camera.id.clone()),
            false => saved.remove(&camera.id),
        };
        let written = serde_json::to_vec(&saved).map_err(Into::into).and_then(|json| write_whole(&self.path, &json));
        if let Err(e) = written {
            log::error!("cannot write {}: {e}; after a restart the switch is as it was", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sample;

    fn news(board: &Board, published: &mut BTreeMap<String, String>) -> Vec<String> {
        board.news(published).into_iter().map(|(t, v)| format!("{t}={v}")).collect()
    }

    #[test]
    fn the_state_is_the_newest_action_that_is_open() {
        let board = Board::new(["door", "yard"], &["falling down".into()]);
        let mut published = BTreeMap::new();
        let first =
            ["door/action/falling_down=OFF", "door/state=none", "yard/action/falling_down=OFF", "yard/state=none"];
        assert_eq!(news(&board, &mut published), first);
        let mut walking = sample(1);
        board.event(&walking);
        assert_eq!(news(&board, &mut published), ["door/state=walking"]);
        let mut falling = sample(2);
        (falling.id, falling.label) = ("2".into(), "falling down".into());
        board.event(&falling);
        assert_eq!(news(&board, &mut published), ["door/action/falling_down=ON", "door/state=falling down"]);
        walking.phase = Phase::Update;
        board.event(&walking);
        assert!(news(&board, &mut published).is_empty());
        falling.phase = Phase::End;
        board.event(&falling);
        assert_eq!(news(&board, &mut published), ["door/action/falling_down=OFF", "door/state=walking"]);
        walking.phase = Phase::End;
        board.event(&walking);
        assert_eq!(news(&board, &mut published), ["door/state=none"]);
    }
}
