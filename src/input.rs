//! Frames -> a stream's input tensor, in the layout and value range that its manifest says.

use crate::{
    compile::Packed,
    frame::Frame,
    inference::{Hop, Tensor},
    model::{Dtype, Layout, Stream, StreamKind},
};

/// Writes one stream's input. `frame(i)` is the i-th of `length` frames, oldest first; the stream's last position is the
/// last frame, and `positions` of them, `stream.step` frames apart, are written. A position that would lie before the
/// first frame is that frame again.
pub fn fill<'a>(
    stream: &Stream,
    view: usize,
    packed: Option<Packed>,
    positions: usize,
    length: usize,
    frame: impl Fn(usize) -> &'a Frame,
    out: &mut Tensor,
) {
    let [width, height] = stream.size;
    let channels = stream.channels();
    let samples = positions * channels * height * width;
    let strides = Strides::new(stream.layout, positions, channels, height, width);
    let back = |position: usize, stacked: usize| {
        let behind = (positions - 1 - position) * stream.step + stacked;
        &frame((length - 1).saturating_sub(behind)).views[view]
    };
    let [low, high] = stream.range;
    let level = |v: u8| low + (high - low) * f32::from(v) / 255.0;
    let (middle, half, bound) = ((low + high) / 2.0, (high - low) / 2.0, stream.bound);
    let of_flow = move |v: f32| middle + half * (v / bound).clamp(-1.0, 1.0);
    if let Some(Packed { scale, block }) = packed {
        if !matches!(out, Tensor::I8(_)) {
            *out = Tensor::I8(Vec::new());
        }
        let Tensor::I8(out) = out else { unreachable!("just made so") };
        out.resize(samples, 0);
        let rounded = move |v: f32| quantized(v, scale);
        let levels: [i8; 256] = std::array::from_fn(|v| rounded(level(v as u8)));
        let squares = Squares { block, channels, positions, width, height };
        for position in 0..positions {
            let mut channel = 0;
            if stream.kind != StreamKind::Flow {
                squares.write(position, channel, 3, &back(position, 0).rgb, |v| levels[v as usize], out);
                channel = 3;
            }
            if stream.kind != StreamKind::Rgb {
                for stacked in (0..stream.stack).rev() {
                    let flow = &back(position, stacked).flow;
                    squares.write(position, channel, 2, flow, move |v| rounded(of_flow(v)), out);
                    channel += 2;
                }
            }
        }
        return;
    }
    match (out, stream.dtype) {
        (Tensor::F32(out), Dtype::F32) => {
            out.resize(samples, 0.0);
            let levels: [f32; 256] = std::array::from_fn(|v| level(v as u8));
            for position in 0..positions {
                let mut channel = 0;
                if stream.kind != StreamKind::Flow {
                    let rgb = &back(position, 0).rgb;
                    write(&strides, position, channel, 3, width, rgb, |v| levels[v as usize], out);
                    channel = 3;
                }
                if stream.kind != StreamKind::Rgb {
                    for stacked in (0..stream.stack).rev() {
                        let flow = &back(position, stacked).flow;
                        write(&strides, position, channel, 2, width, flow, of_flow, out);
                        channel += 2;
                    }
                }
            }
        }
        (Tensor::U8(out), Dtype::U8) => {
            out.resize(samples, 0);
            for position in 0..positions {
                write(&strides, position, 0, 3, width, &back(position, 0).rgb, |v| v, out);
            }
        }
        (out, dtype) => {
            *out = match dtype {
                Dtype::F32 => Tensor::F32(Vec::new()),
                Dtype::U8 => Tensor::U8(Vec::new()),
            };
            fill(stream, view, packed, positions, length, frame, out);
        }
    }
}

/// Writes all streams' inputs of one hop, the last frame of `length` being the newest. `views`: which view of a frame
/// each stream takes.
pub fn fill_hop<'a>(
    streams: &[Stream],
    views: &[usize],
    length: usize,
    frame: impl Fn(usize) -> &'a Frame,
    hop: &mut Hop,
) {
    let forms = hop.frames.iter().zip(&hop.packed);
    for (((stream, &view), (&positions, &packed)), tensor) in streams.iter().zip(views).zip(forms).zip(&mut hop.inputs)
    {
        fill(stream, view, packed, positions, length, &frame, tensor);
    }
}

/// An input with squares of pixels as channels; see [`Packed`].
struct Squares {
    block: [usize; 2],
    channels: usize,
    positions: usize,
    width: usize,
    height: usize,
}

impl Squares {
    /// Copies one frame's interleaved samples (`count` channels) to where channels `channel..` of `position` lie.
    fn write<S: Copy>(
        &self,
        position: usize,
        channel: usize,
        count: usize,
        samples: &[S],
        value: impl Fn(S) -> i8,
        out: &mut [i8],
    ) {
        let [bh, bw] = self.block;
        let (columns, rows) = (self.width / bw, self.height / bh);
        let plane = columns * rows;
        // Some squares at a time: first all of their values, one after the other, then each to its place.
        let square = bw * count;
        let mut values = [0; 1024];
        let room = values.len() / square * square;
        for (y, line) in samples.chunks_exact(self.width * count).enumerate() {
            for (some, line) in line.chunks(room).enumerate() {
                let values = &mut values[..line.len()];
                values.iter_mut().zip(line).for_each(|(v, s)| *v = value(*s));
                let from = some * room / square;
                for dx in 0..bw {
                    for c in 0..count {
                        let packed = ((y % bh) * bw + dx) * self.channels + channel + c;
                        let row = (packed * self.positions + position) * plane + y / bh * columns;
                        let of_line = values[dx * count + c..].iter().step_by(square);
                        out[row + from..row + columns].iter_mut().zip(of_line).for_each(|(d, s)| *d = *s);
                    }
                }
            }
        }
    }
}

/// As QuantizeLinear rounds (of two, to the even number) and saturates.
#[inline]
fn quantized(v: f32, scale: f32) -> i8 {
    // At 1.5 * 2^23 a float's last bit is worth one: adding it rounds, and leaves the number in the lowest bits. Unlike
    // `round_ties_even`, which is a call where the processor has no such instruction for sure, many are done at a time.
    const ONES: f32 = 12_582_912.0;
    ((v / scale).clamp(-128.0, 127.0) + ONES).to_bits() as i8
}

/// Packs values of the stream's own layout [1, C, T, H, W], as [`fill`] does.
pub fn pack(values: &[f32], packed: Packed, stream: &Stream, positions: usize) -> Tensor {
    let [width, height] = stream.size;
    let channels = stream.channels();
    let plane = width * height;
    let squares = Squares { block: packed.block, channels, positions, width, height };
    let mut out = vec![0; values.len()];
    let rounded = |v: f32| quantized(v, packed.scale);
    for (i, samples) in values.chunks_exact(plane).enumerate() {
        squares.write(i % positions, i / positions, 1, samples, rounded, &mut out);
    }
    Tensor::I8(out)
}

/// Distances in the output from one position, channel, row and column to the next.
struct Strides {
    position: usize,
    channel: usize,
    row: usize,
    column: usize,
}

impl Strides {
    fn new(layout: Layout, positions: usize, channels: usize, height: usize, width: usize) -> Self {
        let plane = height * width;
        let (position, channel, row, column) = match layout {
            Layout::Ncthw => (plane, positions * plane, width, 1),
            Layout::Ntchw | Layout::Nchw => (channels * plane, plane, width, 1),
            Layout::Nthwc => (channels * plane, 1, width * channels, channels),
        };
        Strides { position, channel, row, column }
    }
}

/// Copies one frame's interleaved samples (`count` channels) to where channels `channel..` of `position` lie.
#[allow(clippy::too_many_arguments)]
fn write<S: Copy, D>(
    strides: &Strides,
    position: usize,
    channel: usize,
    count: usize,
    width: usize,
    samples: &[S],
    value: impl Fn(S) -> D,
    out: &mut [D],
) {
    for c in 0..count {
        let plane = position * strides.position + (channel + c) * strides.channel;
        for (y, line) in samples.chunks_exact(width * count).enumerate() {
            let row = plane + y * strides.row;
            if strides.column == 1 {
                for (d, s) in out[row..row + width].iter_mut().zip(line[c..].iter().step_by(count)) {
                    *d = value(*s);
                }
            } else {
                for (x, s) in line[c..].iter().step_by(count).enumerate() {
                    out[row + x * strides.column] = value(*s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::View;

    const W: usize = 3;
    const H: usize = 2;

    /// Frame i: RGB sample = 10 i + channel + 3 * pixel, flow = i + channel / 2 (+ pixel / 100).
    fn frames(n: usize) -> Vec<Frame> {
        (0..n)
            .map(|i| {
                let rgb = (0..W * H * 3).map(|s| (10 * i + s) as u8).collect();
                let flow = (0..W * H * 2).map(|s| i as f32 + (s % 2) as f32 / 2.0 + (s / 2) as f32 / 100.0).collect();
                Frame { number: i as u64, still: 0, views: vec![View { rgb, flow }] }
            })
            .collect()
    }

    fn stream(text: &str) -> Stream {
        let common = r#"
            name = "s"
            size = [3, 2]
            fit = "squeeze"
            input = "input"
            output = "logits"
            file = []
        "#;
        toml::from_str(&format!("{common}{text}")).unwrap()
    }

    fn filled(stream: &Stream, positions: usize, n: usize) -> Vec<f32> {
        let frames = frames(n);
        let mut out = Tensor::F32(Vec::new());
        fill(stream, 0, None, positions, n, |i| &frames[i], &mut out);
        let Tensor::F32(out) = out else { panic!() };
        assert_eq!(out.len(), stream.shape(positions).iter().product::<usize>());
        out
    }

    #[test]
    fn every_layout_puts_a_sample_where_its_shape_says() {
        for (layout, order) in [("NCTHW", [1, 0, 2, 3]), ("NTCHW", [0, 1, 2, 3]), ("NTHWC", [0, 2, 3, 1])] {
            let s = stream(&format!("kind = 'rgb'\nframes = 4\nlayout = '{layout}'\nrange = [0.0, 255.0]"));
            let out = filled(&s, 4, 4);
            let extent = [4, 3, H, W];
            for t in 0..4 {
                for c in 0..3 {
                    for y in 0..H {
                        for x in 0..W {
                            let at = [t, c, y, x];
                            let index = order.iter().fold(0, |i, &axis| i * extent[axis] + at[axis]);
                            assert_eq!(out[index], (10 * t + (y * W + x) * 3 + c) as f32, "{layout} {at:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rgb_spans_its_range() {
        let s = stream("kind = 'rgb'\nframes = 1\nlayout = 'NCTHW'");
        let mut white = frames(1);
        white[0].views[0].rgb.fill(255);
        white[0].views[0].rgb[0] = 0;
        let mut out = Tensor::F32(Vec::new());
        fill(&s, 0, None, 1, 1, |i| &white[i], &mut out);
        let Tensor::F32(out) = out else { panic!() };
        assert_eq!((out[0], out[1]), (-1.0, 1.0));
    }

    #[test]
    fn flow_is_clipped_and_divided_by_its_bound() {
        let s = stream("kind = 'flow'\nframes = 3\nlayout = 'NCTHW'\nbound = 2.0");
        let out = filled(&s, 3, 3);
        // Frame 0: dx 0 and dy 0.5 px of 2; frame 2 and later: dx at the bound.
        assert_eq!(out[0], 0.0);
        assert_eq!(out[2 * W * H], 1.0);
        assert_eq!(out[3 * W * H], 0.25);
    }

    #[test]
    fn steps_reach_back_from_the_last_frame() {
        let s = stream("kind = 'rgb'\nframes = 3\nstep = 4\nlayout = 'NTHWC'\nrange = [0.0, 255.0]");
        let out = filled(&s, 3, 10);
        let first: Vec<f32> = out.chunks(W * H * 3).map(|f| f[0]).collect();
        assert_eq!(first, [10.0, 50.0, 90.0]);
    }

    #[test]
    fn stacked_flow_ends_at_its_frame_oldest_first() {
        let s = stream("kind = 'flow'\nframes = 1\nstack = 3\nlayout = 'NCHW'\nbound = 10.0\nrange = [-10.0, 10.0]");
        let out = filled(&s, 1, 8);
        let planes: Vec<f32> = out.chunks(W * H).map(|p| p[0]).collect();
        assert_eq!(planes, [5.0, 5.5, 6.0, 6.5, 7.0, 7.5]);
    }

    #[test]
    fn rgb_and_flow_together_are_five_channels() {
        let s = stream("kind = 'rgb+flow'\nframes = 2\nlayout = 'NTCHW'\nbound = 10.0\nrange = [-1.0, 1.0]");
        let out = filled(&s, 2, 2);
        assert_eq!(out.len(), 2 * 5 * W * H);
        assert!((out[3 * W * H] - 0.0).abs() < 1e-6);
        assert!((out[8 * W * H] - 0.1).abs() < 1e-6, "{}", out[8 * W * H]);
    }

    #[test]
    fn u8_inputs_are_the_samples_themselves() {
        let s = stream("kind = 'rgb'\nframes = 2\nlayout = 'NTHWC'\ndtype = 'u8'");
        let frames = frames(2);
        let mut out = Tensor::F32(Vec::new());
        fill(&s, 0, None, 2, 2, |i| &frames[i], &mut out);
        let Tensor::U8(out) = out else { panic!() };
        assert_eq!(out, [&frames[0].views[0].rgb[..], &frames[1].views[0].rgb[..]].concat());
    }

    #[test]
    fn packed_values_are_those_that_the_graph_would_round_to() {
        let scale = 1.0 / 100.0;
        for (kind, block) in [("rgb", [2, 1]), ("flow", [1, 3]), ("rgb+flow", [2, 3])] {
            let s = stream(&format!("kind = '{kind}'\nframes = 3\nlayout = 'NCTHW'\nbound = 2.0"));
            let frames = frames(5);
            let mut plain = Tensor::F32(Vec::new());
            fill(&s, 0, None, 3, 5, |i| &frames[i], &mut plain);
            let Tensor::F32(plain) = plain else { panic!() };
            let packed = Packed { scale, block };
            let mut direct = Tensor::I8(Vec::new());
            fill(&s, 0, Some(packed), 3, 5, |i| &frames[i], &mut direct);
            assert_eq!(direct, pack(&plain, packed, &s, 3), "{kind}");
            let Tensor::I8(direct) = direct else { panic!() };
            // Where `Packed` says that a value lies.
            let channels = s.channels();
            for c in 0..channels {
                for t in 0..3 {
                    for (y, x) in (0..H).flat_map(|y| (0..W).map(move |x| (y, x))) {
                        let channel = ((y % block[0]) * block[1] + x % block[1]) * channels + c;
                        let (h, w) = (H / block[0], W / block[1]);
                        let at = ((channel * 3 + t) * h + y / block[0]) * w + x / block[1];
                        let value = plain[((c * 3 + t) * H + y) * W + x];
                        assert_eq!(f32::from(direct[at]), (value / scale).round_ties_even().clamp(-128.0, 127.0));
                    }
                }
            }
        }
    }

    #[test]
    fn before_the_first_frame_is_the_first_frame() {
        let s = stream("kind = 'rgb'\nframes = 4\nlayout = 'NTHWC'\nrange = [0.0, 255.0]");
        let first: Vec<f32> = filled(&s, 4, 2).chunks(W * H * 3).map(|f| f[0]).collect();
        assert_eq!(first, [0.0, 0.0, 0.0, 10.0]);
    }
}
