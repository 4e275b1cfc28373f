//! Any topic and payload as an MQTT message to the daemon: nothing but a switch moves a camera.
#![no_main]

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use actiond::{
    camera::Camera,
    config::Plan,
    publish::{Asked, Board, Switches, asked},
    ring::{Bell, Rhythm},
};

const BASE: &str = "actiond/dock";

struct House {
    cameras: Vec<Arc<Camera>>,
    board: Arc<Board>,
    switches: Switches,
}

fn house() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let text = "[[camera]]\nid = \"door\"\nsource = \"usb:0\"\n[[camera]]\nid = \"yard.2\"\nsource = \"usb:1\"\n";
        let plan = Plan::parse(text, "actiond.toml", Path::new("/etc")).expect("a good config");
        let rhythm = Rhythm { window: 64, hop: 8, carried: false };
        let camera = |c| Camera::new(c, rhythm, Arc::new(Bell::default()));
        let cameras: Vec<Arc<Camera>> = plan.cameras.iter().map(camera).collect();
        let board = Arc::new(Board::new(cameras.iter().map(|c| c.id.as_str()), &[]));
        // In memory: a switch is synced.
        let shared = Path::new("/dev/shm");
        let all = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let folder = all.join(format!("actiond-fuzz-mqtt-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let switches = Switches::new(&cameras, &folder, board.clone());
        House { cameras, board, switches }
    })
}

// The input: whether the message is retained, its topic, a zero byte, its payload.
actiond_fuzz::fuzz_target!(|bytes: &[u8]| {
    let house = house();
    actiond_fuzz::bounded();
    let Some((first, rest)) = bytes.split_first() else { return };
    let retained = first & 1 != 0;
    let mut parts = rest.splitn(2, |b| *b == 0);
    let (topic, payload) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut expected: Vec<bool> = house.cameras.iter().map(|c| c.is_paused()).collect();
    for (camera, paused) in house.cameras.iter().zip(&mut expected) {
        if !retained && topic == format!("{BASE}/{}/watching/set", camera.id).as_bytes() {
            match payload {
                b"ON" => *paused = false,
                b"OFF" => *paused = true,
                _ => {}
            }
        }
    }
    let asked = asked(BASE, topic, payload, retained);
    assert_eq!(asked == Asked::Announce, !retained && topic == b"homeassistant/status" && payload == b"online");
    if let Asked::Switch { camera, payload } = asked {
        house.switches.command(camera, payload);
    }
    let paused: Vec<bool> = house.cameras.iter().map(|c| c.is_paused()).collect();
    assert_eq!(paused, expected);
    let shown = house.board.news(&mut Default::default());
    for (camera, paused) in house.cameras.iter().zip(paused) {
        let value = (format!("{}/watching", camera.id), if paused { "OFF" } else { "ON" }.to_owned());
        assert!(shown.contains(&value), "{value:?} in {shown:?}");
    }
    // Nothing of a stranger's is published.
    assert_eq!(shown.len(), 2 * house.cameras.len(), "{shown:?}");
});
