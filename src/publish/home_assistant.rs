//! Home Assistant finds the device and its cameras by itself: MQTT device discovery, one message that says all.
//!
//! For each camera an `event` entity (its types are the labels; it fires when an action starts), a sensor with the
//! current action, a switch that pauses the camera, a binary sensor for each label of `binary_sensors`, and its frame
//! rate; for the device hop rate, backend, mode, and temperature where the board has it.
//!
//! What was announced is remembered beside the journal. A component that is not there any more (a camera left the config,
//! a label is not watched) is announced once with nothing but its platform, which removes it; a device whose
//! `home_assistant` was turned off, or that has another id now, is removed as a whole.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::slug;
use crate::{
    error::{Error, Result},
    event::Event,
    journal::write_whole,
};

/// What there is to announce.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whether it is to be announced.
    pub announce: bool,
    pub cameras: Vec<String>,
    /// Labels that can become events.
    pub labels: Vec<String>,
    /// Those with a binary sensor.
    pub watched: Vec<String>,
    pub model: String,
    pub has_temperature: bool,
    /// Where what was announced is remembered.
    pub folder: PathBuf,
}

/// What Home Assistant was told, as it is in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Announced {
    topic: String,
    /// Components and their platforms.
    components: BTreeMap<String, String>,
}

pub struct HomeAssistant {
    topic: String,
    /// Without components; none where nothing is to be announced.
    device: Option<Value>,
    components: BTreeMap<String, Value>,
    path: PathBuf,
}

impl HomeAssistant {
    /// Where it says that it is online.
    pub const STATUS: &str = "homeassistant/status";

    pub fn new(facts: &Facts, device: &str, base: &str) -> Self {
        let id = format!("actiond_{}", name(device));
        let about = json!({
            "dev": {
                "ids": [id], "name": format!("actiond {device}"), "mf": "actiond", "mdl": facts.model,
                "sw": env!("CARGO_PKG_VERSION"),
            },
            "o": { "name": "actiond", "sw": env!("CARGO_PKG_VERSION") },
            "avty_t": format!("{base}/status"),
        });
        HomeAssistant {
            topic: format!("homeassistant/device/{id}/config"),
            device: facts.announce.then_some(about),
            components: if facts.announce { components(facts, &id, base) } else { BTreeMap::new() },
            path: facts.folder.join("announced.json"),
        }
    }

    pub fn is_on(&self) -> bool {
        self.device.is_some()
    }

    /// An event with the key by which Home Assistant tells its type.
    pub fn payload(event: &Event) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Payload<'a> {
            #[serde(flatten)]
            event: &'a Event,
            event_type: &'a str,
        }
        serde_json::to_vec(&Payload { event, event_type: &event.label })
            .map_err(|e| Error::internal("an event has no JSON").caused_by(e))
    }

    /// The messages that bring Home Assistant up to date, in order, all retained: topic and payload. When the one that is
    /// marked has been acknowledged, [`announced`](Self::announced) is to be called.
    pub fn announcements(&self) -> Vec<(bool, String, Vec<u8>)> {
        let before = self.remembered();
        let mut messages = Vec::new();
        if !before.topic.is_empty() && (before.topic != self.topic || self.device.is_none()) {
            messages.push((self.device.is_none(), before.topic.clone(), Vec::new()));
        }
        let Some(device) = &self.device else { return messages };
        let mut gone = before.components.clone();
        gone.retain(|id, _| before.topic == self.topic && !self.components.contains_key(id));
        // Until they are known to be removed, a kill must not make us forget them.
        let mut both = self.announcement();
        both.components.extend(gone.clone());
        self.remember(&both);
        let message = |components: BTreeMap<String, Value>| {
            let mut whole = device.clone();
            whole["cmps"] = json!(components);
            whole.to_string().into_bytes()
        };
        if !gone.is_empty() {
            let mut components = self.components.clone();
            components.extend(gone.into_iter().map(|(id, platform)| (id, json!({ "p": platform }))));
            messages.push((false, self.topic.clone(), message(components)));
        }
        messages.push((true, self.topic.clone(), message(self.components.clone())));
        messages
    }

    /// The broker has what was to be announced.
    pub fn announced(&self) {
        if self.device.is_some() {
            return self.remember(&self.announcement());
        }
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => log::warn!("cannot remove {}: {e}", self.path.display()),
            _ => {}
        }
    }

    fn announcement(&self) -> Announced {
        let platform = |c: &Value| c["p"].as_str().unwrap_or_default().to_owned();
        let components = self.components.iter().map(|(id, c)| (id.clone(), platform(c))).collect();
        Announced { topic: self.topic.clone(), components }
    }

    fn remembered(&self) -> Announced {
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| {
                log::warn!(
                    "{}: {e}; entities of cameras that left the config may have to be removed by hand",
                    self.path.display()
                );
                Announced::default()
            }),
            Err(_) => Announced::default(),
        }
    }

    fn remember(&self, announced: &Announced) {
        if self.remembered() == *announced {
            return;
        }
        let written =
            serde_json::to_vec(announced).map_err(io::Error::from).and_then(|json| write_whole(&self.path, &json));
        if let Err(e) = written {
            log::warn!("cannot write {}: {e}", self.path.display());
        }
    }
}

/// An id of ours as part of one of Home Assistant's, which have no dots.
fn name(id: &str) -> String {
    id.replace('.', "__")
}

fn components(facts: &Facts, id: &str, base: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut add = |key: String, mut component: Value| {
        component["unique_id"] = json!(format!("{id}_{key}"));
        all.insert(key, component);
    };
    let diagnostic = |topic: &str, key: &str, called: &str, icon: &str| {
        json!({
            "p": "sensor", "name": called, "state_topic": format!("{base}/{topic}"), "icon": icon,
            "value_template": format!("{{{{ value_json.{key} }}}}"), "entity_category": "diagnostic",
        })
    };
    for camera in &facts.cameras {
        let (key, topic) = (name(camera), format!("{base}/{camera}"));
        add(
            format!("{key}_event"),
            json!({
                "p": "event", "name": format!("{camera} event"), "icon": "mdi:run", "event_types": facts.labels,
                "state_topic": format!("{topic}/event"),
                // It fires once for an action; the payload has its `event_type`.
                "value_template": "{{ value if value_json.phase == 'start' else '' }}",
            }),
        );
        let options: Vec<&str> = ["none"].into_iter().chain(facts.labels.iter().map(String::as_str)).collect();
        add(
            format!("{key}_action"),
            json!({
                "p": "sensor", "name": format!("{camera} action"), "icon": "mdi:human",
                "state_topic": format!("{topic}/state"), "device_class": "enum", "options": options,
            }),
        );
        for label in &facts.watched {
            add(
                format!("{key}_action_{}", slug(label)),
                json!({
                    "p": "binary_sensor", "name": format!("{camera} {label}"), "icon": "mdi:human",
                    "state_topic": format!("{topic}/action/{}", slug(label)),
                }),
            );
        }
        add(
            format!("{key}_watching"),
            json!({
                "p": "switch", "name": format!("{camera} watching"), "icon": "mdi:cctv",
                "state_topic": format!("{topic}/watching"), "command_topic": format!("{topic}/watching/set"),
            }),
        );
        let mut fps =
            diagnostic(&format!("{camera}/diagnostics"), "fps", &format!("{camera} frame rate"), "mdi:filmstrip");
        (fps["unit_of_measurement"], fps["state_class"]) = (json!("fps"), json!("measurement"));
        add(format!("{key}_fps"), fps);
    }
    let mut hops = diagnostic("diagnostics", "hops_per_s", "Hop rate", "mdi:speedometer");
    (hops["unit_of_measurement"], hops["state_class"]) = (json!("hops/s"), json!("measurement"));
    add("device_hops".into(), hops);
    add("device_backend".into(), diagnostic("diagnostics", "backend", "Backend", "mdi:chip"));
    add("device_mode".into(), diagnostic("diagnostics", "mode", "Mode", "mdi:cog"));
    if facts.has_temperature {
        let mut temperature = diagnostic("diagnostics", "temperature_c", "Temperature", "mdi:thermometer");
        temperature["device_class"] = json!("temperature");
        (temperature["unit_of_measurement"], temperature["state_class"]) = (json!("°C"), json!("measurement"));
        add("device_temperature".into(), temperature);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sample;

    fn facts(cameras: &[&str], folder: &std::path::Path) -> Facts {
        Facts {
            announce: true,
            cameras: cameras.iter().map(|c| (*c).into()).collect(),
            labels: vec!["walking".into(), "falling down".into()],
            watched: vec!["falling down".into()],
            model: "m".into(),
            has_temperature: true,
            folder: folder.into(),
        }
    }

    fn of(facts: &Facts) -> HomeAssistant {
        HomeAssistant::new(facts, "dock.3", "actiond/dock.3")
    }

    fn only(messages: &[(bool, String, Vec<u8>)]) -> Value {
        assert_eq!(messages.len(), 1, "{messages:?}");
        serde_json::from_slice(&messages[0].2).unwrap()
    }

    #[test]
    fn one_message_with_a_device_and_its_components() {
        let folder = tempfile::tempdir().unwrap();
        let messages = of(&facts(&["door"], folder.path())).announcements();
        assert_eq!((messages[0].0, messages[0].1.as_str()), (true, "homeassistant/device/actiond_dock__3/config"));
        let message = only(&messages);
        assert_eq!(message["avty_t"], "actiond/dock.3/status");
        assert!(message["o"]["name"] == "actiond" && message["dev"]["ids"][0] == "actiond_dock__3");
        let components = message["cmps"].as_object().unwrap();
        let mut ids: Vec<&str> = components.values().map(|c| c["unique_id"].as_str().unwrap()).collect();
        ids.dedup();
        assert_eq!(ids.len(), components.len());
        assert!(components.values().all(|c| c["p"].is_string()), "each has its platform");
        let event = &components["door_event"];
        assert_eq!(event["event_types"], json!(["walking", "falling down"]));
        assert_eq!(event["state_topic"], "actiond/dock.3/door/event");
        assert_eq!(components["door_action"]["options"], json!(["none", "walking", "falling down"]));
        assert_eq!(components["door_action_falling_down"]["state_topic"], "actiond/dock.3/door/action/falling_down");
        assert_eq!(components["door_watching"]["command_topic"], "actiond/dock.3/door/watching/set");
        assert_eq!(components["device_temperature"]["value_template"], "{{ value_json.temperature_c }}");
    }

    #[test]
    fn the_payload_tells_its_type_and_is_an_event_still() {
        let payload = HomeAssistant::payload(&sample(3)).unwrap();
        let value: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(value["event_type"], "walking");
        assert_eq!(serde_json::from_slice::<Event>(&payload).unwrap(), sample(3));
    }

    #[test]
    fn what_left_the_config_is_removed_and_then_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let two = of(&facts(&["door", "yard"], folder.path()));
        assert_eq!(two.announcements().len(), 1);
        two.announced();
        let one = of(&facts(&["door"], folder.path()));
        // Not acknowledged, so it is told again.
        for _ in 0..2 {
            let messages = one.announcements();
            assert_eq!(messages.len(), 2);
            let removing: Value = serde_json::from_slice(&messages[0].2).unwrap();
            assert_eq!(removing["cmps"]["yard_event"], json!({"p": "event"}));
            assert_eq!(removing["cmps"]["yard_watching"], json!({"p": "switch"}));
            assert!(removing["cmps"]["door_event"]["event_types"].is_array());
            assert!(serde_json::from_slice::<Value>(&messages[1].2).unwrap()["cmps"]["yard_event"].is_null());
            assert_eq!((messages[0].0, messages[1].0), (false, true));
        }
        one.announced();
        assert_eq!(one.announcements().len(), 1);
        // Turned off: the whole device goes.
        let off = of(&Facts { announce: false, ..facts(&["door"], folder.path()) });
        let messages = off.announcements();
        assert_eq!((messages.len(), messages[0].0, messages[0].2.len()), (1, true, 0));
        off.announced();
        assert!(off.announcements().is_empty());
        // Another id: the old device goes, and only it.
        one.announcements();
        one.announced();
        let other = HomeAssistant::new(&facts(&["door"], folder.path()), "hall", "actiond/hall");
        let messages = other.announcements();
        assert_eq!((messages.len(), messages[0].1.as_str()), (2, "homeassistant/device/actiond_dock__3/config"));
        assert!(messages[0].2.is_empty() && messages[1].1.contains("actiond_hall"));
    }
}
