//! Any text as a config file: a plan, or errors that each say where they are.
#![no_main]

use std::path::Path;

use actiond::config::Plan;

actiond_fuzz::fuzz_target!(|text: &str| {
    actiond_fuzz::bounded();
    match Plan::parse(text, "actiond.toml", Path::new("/etc")) {
        Ok(plan) => assert!(!plan.cameras.is_empty()),
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|e| e.to_string().starts_with("actiond.toml:")));
        }
    }
});
