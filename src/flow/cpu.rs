//! Flow on the CPU: OpenCV's DIS, and its TV-L1 for offline use (0.4 s a frame).

use opencv::{core, prelude::*, video};

use super::Flow;
use crate::{
    error::{Error, Result},
    model::{Algorithm, FlowMethod, Preset},
};

/// OpenCV's estimators behind one calling convention.
pub struct CpuFlow {
    estimator: Estimator,
    width: usize,
    height: usize,
}

enum Estimator {
    Dis(core::Ptr<video::DISOpticalFlow>),
    TvL1(core::Ptr<opencv::optflow::DualTVL1OpticalFlow>),
}

// SAFETY: an OpenCV algorithm object has no ties to the thread that made it; it may be moved, and `&mut self` in `step`
// keeps two threads from using it at once.
unsafe impl Send for CpuFlow {}

fn failed(e: opencv::Error) -> Error {
    Error::internal("OpenCV could not estimate flow").caused_by(e)
}

impl CpuFlow {
    /// An estimator for luma of `size` (width, height).
    pub fn new(method: FlowMethod, size: [usize; 2]) -> Result<Self> {
        let estimator = match method.algorithm {
            Algorithm::Dis => {
                let preset = match method.preset {
                    Preset::Ultrafast => video::DISOpticalFlow_PRESET_ULTRAFAST,
                    Preset::Fast => video::DISOpticalFlow_PRESET_FAST,
                    Preset::Medium => video::DISOpticalFlow_PRESET_MEDIUM,
                };
                let mut dis = video::DISOpticalFlow::create(preset).map_err(failed)?;
                if let Some(scale) = method.finest_scale {
                    dis.set_finest_scale(i32::from(scale)).map_err(failed)?;
                }
                if let Some(pixels) = method.patch_stride {
                    dis.set_patch_stride(i32::from(pixels)).map_err(failed)?;
                }
                if let Some(steps) = method.descents {
                    dis.set_gradient_descent_iterations(i32::from(steps)).map_err(failed)?;
                }
                if let Some(iterations) = method.refinement {
                    dis.set_variational_refinement_iterations(i32::from(iterations)).map_err(failed)?;
                }
                Estimator::Dis(dis)
            }
            Algorithm::TvL1 => Estimator::TvL1(opencv::optflow::DualTVL1OpticalFlow::create_def().map_err(failed)?),
        };
        // DIS splits a picture among threads in a way that changes its result a little; cameras run side by side
        // anyway.
        core::set_num_threads(1).map_err(failed)?;
        Ok(CpuFlow { estimator, width: size[0], height: size[1] })
    }
}

impl Flow for CpuFlow {
    fn step(&mut self, prev: &[u8], next: &[u8], out: &mut [f32]) -> Result<()> {
        let samples = self.width * self.height;
        if prev.len() != samples || next.len() != samples || out.len() != samples * 2 {
            return Err(Error::internal("flow of pictures of another size than it was made for"));
        }
        let (rows, cols) = (self.height as i32, self.width as i32);
        // SAFETY: the headers point into slices that outlive this call and hold exactly rows x cols samples; OpenCV only
        // reads the first two.
        let (from, to, mut flow) = unsafe {
            let header = |data: *mut std::ffi::c_void, kind| {
                core::Mat::new_rows_cols_with_data_unsafe_def(rows, cols, kind, data).map_err(failed)
            };
            (
                header(prev.as_ptr().cast_mut().cast(), core::CV_8UC1)?,
                header(next.as_ptr().cast_mut().cast(), core::CV_8UC1)?,
                header(out.as_mut_ptr().cast(), core::CV_32FC2)?,
            )
        };
        let before = flow.data();
        match &mut self.estimator {
            // DIS takes its output's content for a first guess unless told otherwise; each pair is to stand alone.
            Estimator::Dis(dis) => {
                out.fill(0.0);
                dis.calc(&from, &to, &mut flow).map_err(failed)?;
            }
            Estimator::TvL1(tvl1) => tvl1.calc(&from, &to, &mut flow).map_err(failed)?,
        }
        if flow.data() != before {
            return Err(Error::internal("OpenCV did not write the flow in place"));
        }
        Ok(())
    }
}

/// Averages flow of `upscale` times the size down to `out` (`width` wide), and its pixels to those of the small picture.
pub fn average_down(flow: &[f32], upscale: usize, width: usize, scale: f32, out: &mut [f32]) {
    let factor = scale / (upscale * upscale * upscale) as f32;
    let stride = width * upscale * 2;
    for (y, line) in out.chunks_exact_mut(width * 2).enumerate() {
        for (x, vector) in line.chunks_exact_mut(2).enumerate() {
            let mut sum = [0.0f32; 2];
            for row in 0..upscale {
                let start = (y * upscale + row) * stride + x * upscale * 2;
                for v in flow[start..start + upscale * 2].chunks_exact(2) {
                    sum[0] += v[0];
                    sum[1] += v[1];
                }
            }
            vector.copy_from_slice(&sum.map(|s| s * factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A smooth texture, shifted by (dx, dy).
    fn texture(size: usize, dx: f64, dy: f64) -> Vec<u8> {
        (0..size * size)
            .map(|i| {
                let (x, y) = ((i % size) as f64 - dx, (i / size) as f64 - dy);
                let v = (x * 0.31).sin() + (y * 0.23).cos() + ((x + y) * 0.11).sin() + ((x - 2.0 * y) * 0.17).cos();
                (128.0 + v * 30.0) as u8
            })
            .collect()
    }

    fn mean_inside(flow: &[f32], size: usize) -> [f32; 2] {
        let mut sum = [0.0f64; 2];
        let margin = size / 4;
        for y in margin..size - margin {
            for x in margin..size - margin {
                sum[0] += f64::from(flow[(y * size + x) * 2]);
                sum[1] += f64::from(flow[(y * size + x) * 2 + 1]);
            }
        }
        let n = ((size - 2 * margin) * (size - 2 * margin)) as f64;
        [(sum[0] / n) as f32, (sum[1] / n) as f32]
    }

    #[test]
    fn a_shifted_texture_flows_by_its_shift() {
        for algorithm in [Algorithm::Dis, Algorithm::TvL1] {
            let mut flow = CpuFlow::new(FlowMethod { algorithm, ..FlowMethod::default() }, [128, 128]).unwrap();
            let mut out = vec![0.0; 128 * 128 * 2];
            for (dx, dy) in [(3.0, 0.0), (0.0, -2.0), (-1.5, 2.5)] {
                flow.step(&texture(128, 0.0, 0.0), &texture(128, dx, dy), &mut out).unwrap();
                let [mx, my] = mean_inside(&out, 128);
                let tolerance = 0.3;
                assert!(
                    (f64::from(mx) - dx).abs() < tolerance && (f64::from(my) - dy).abs() < tolerance,
                    "{algorithm:?} {mx} {my}"
                );
            }
        }
    }

    #[test]
    fn a_still_picture_has_no_flow_whatever_came_before() {
        let mut flow = CpuFlow::new(FlowMethod::default(), [64, 64]).unwrap();
        let mut out = vec![0.0; 64 * 64 * 2];
        flow.step(&texture(64, 0.0, 0.0), &texture(64, 4.0, 1.0), &mut out).unwrap();
        flow.step(&texture(64, 4.0, 1.0), &texture(64, 4.0, 1.0), &mut out).unwrap();
        assert!(out.iter().all(|v| v.abs() < 1e-3));
    }

    #[test]
    fn a_pair_gives_the_same_flow_alone_and_after_others() {
        let (a, b) = (texture(64, 0.0, 0.0), texture(64, 2.0, 1.0));
        let mut first = vec![0.0; 64 * 64 * 2];
        CpuFlow::new(FlowMethod::default(), [64, 64]).unwrap().step(&a, &b, &mut first).unwrap();
        let mut used = CpuFlow::new(FlowMethod::default(), [64, 64]).unwrap();
        let mut later = vec![9.0; 64 * 64 * 2];
        used.step(&b, &a, &mut later).unwrap();
        used.step(&a, &b, &mut later).unwrap();
        assert_eq!(first, later);
    }

    #[test]
    fn averaging_down_keeps_the_motion() {
        // 4x4 vectors of (4, -2) px are 2x2 of (2, -1) px, at half the tempo (1, -0.5).
        let flow = [4.0, -2.0].repeat(16);
        let mut out = vec![0.0; 8];
        average_down(&flow, 2, 2, 0.5, &mut out);
        assert_eq!(out, [1.0, -0.5].repeat(4));
    }

    #[test]
    fn another_size_is_refused() {
        let mut flow = CpuFlow::new(FlowMethod::default(), [64, 64]).unwrap();
        assert!(flow.step(&[0; 16], &[0; 16], &mut [0.0; 32]).is_err());
    }
}
