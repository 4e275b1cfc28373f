//! Any bytes as an ONNX graph: read, and compiled for every mode. What comes out must be a graph again.
#![no_main]

use actiond::{
    compile::{self, Request},
    config::Mode,
};

actiond_fuzz::fuzz_target!(|graph: &[u8]| {
    actiond_fuzz::bounded();
    for mode in [Mode::Window, Mode::Carried, Mode::Continuous] {
        // As the seeds have it.
        let shape = vec![1, 2, 64, 6, 6];
        let (input, output) = ("input", "logits");
        let request = Request { graph, input, shape, axis: 2, output, mode, hop: 8, columns: None };
        let _ = compile::macs(&request);
        let Ok(program) = compile::compile(&request) else { continue };
        assert!(program.frames >= 1 && program.used >= 1);
        let again = Request { graph: &program.graph, ..request.clone() };
        // Its input is another one; to be read it need not fit.
        let _ = compile::macs(&again);
        if program.packed.is_none() {
            let _ = compile::reference(&request, &program, 128);
        }
    }
});
