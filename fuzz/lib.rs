//! What all targets share.

pub use libfuzzer_sys::fuzz_target;

/// What is live at any one time may be no more than this: a small file that makes its reader ask for more is a finding.
const MOST: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Call it first in a target. Not from the start: the fuzzer's own tables are none of the reader's.
pub fn bounded() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| ALLOCATOR.set_limit(ALLOCATOR.allocated() + MOST).expect("a limit above what is there"));
}
