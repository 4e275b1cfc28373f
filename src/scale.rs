//! A picture of any size -> the model's sizes: RGB for the streams that see it, and luma for flow, in one pass over the
//! source's own planes. No full-size colour conversion: planes are averaged down first and become RGB at the model's
//! size, which is the same linear map applied to far fewer samples.

use opencv::{core, imgproc, prelude::*};

use crate::{
    error::{Error, Result},
    frame::{Matrix, Picture, Pixels, Plane},
    model::{Fit, FlowMethod, Manifest, StreamKind},
};

/// Which part of the picture is watched: x, y, width, height as fractions of it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(transparent)]
pub struct Region(pub [f64; 4]);

impl Region {
    pub const WHOLE: Region = Region([0.0, 0.0, 1.0, 1.0]);
}

/// One size and fit that the model's streams ask for, each once however many streams share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewSpec {
    /// Width, height.
    pub size: [usize; 2],
    pub fit: Fit,
    pub rgb: bool,
    pub flow: Option<FlowMethod>,
}

impl ViewSpec {
    /// Size of the luma that flow is estimated on.
    pub fn luma_size(&self) -> Option<[usize; 2]> {
        self.flow.map(|f| [self.size[0] * f.upscale, self.size[1] * f.upscale])
    }
}

/// The views that a model needs, and for each of its streams which one it takes.
pub fn views(manifest: &Manifest) -> (Vec<ViewSpec>, Vec<usize>) {
    let mut specs: Vec<ViewSpec> = Vec::new();
    let mut of_stream = Vec::new();
    for s in &manifest.streams {
        let rgb = s.kind != StreamKind::Flow;
        let flow = (s.kind != StreamKind::Rgb).then_some(s.flow);
        let shared = specs
            .iter()
            .position(|v| v.size == s.size && v.fit == s.fit && (v.flow.is_none() || flow.is_none() || v.flow == flow));
        let index = shared.unwrap_or_else(|| {
            specs.push(ViewSpec { size: s.size, fit: s.fit, rgb: false, flow: None });
            specs.len() - 1
        });
        specs[index].rgb |= rgb;
        specs[index].flow = specs[index].flow.or(flow);
        of_stream.push(index);
    }
    (specs, of_stream)
}

/// A picture at one view's size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scaled {
    /// Height x width x 3, R first; empty where the view has no RGB.
    pub rgb: Vec<u8>,
    /// Full-range luma at [`ViewSpec::luma_size`]; empty where the view has no flow.
    pub luma: Vec<u8>,
}

/// Scales one camera's pictures to all views. Holds its scratch memory: nothing is allocated once it has seen a picture.
#[derive(Debug)]
pub struct Scaler {
    specs: Vec<ViewSpec>,
    region: Region,
    scratch: [Vec<u8>; 3],
    sums: Sums,
}

/// Sums over rows of a plane, for the row that is being made of them.
#[derive(Debug, Default)]
struct Sums {
    /// Of whole rows.
    whole: Vec<u16>,
    /// Of rows with as much of them as lies in the new one.
    parts: Vec<f32>,
    /// What each new column is made of.
    columns: Vec<Cover>,
}

/// Size of a glance: enough to see a limb of a person that fills a third of the picture's height.
pub const GLANCE: [usize; 2] = [128, 128];

/// A rectangle of whole samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rect {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl Scaler {
    pub fn new(specs: Vec<ViewSpec>, region: Region) -> Self {
        Scaler { specs, region, scratch: Default::default(), sums: Sums::default() }
    }

    /// The region's brightness at [`GLANCE`], as it comes (limited range stays so), by whole samples: a tenth of what a
    /// view costs, and good enough to see whether anything moves.
    pub fn glance(&mut self, picture: &Picture, out: &mut Vec<u8>) -> Result<()> {
        if picture.width == 0 || picture.height == 0 {
            return Err(Error::internal("a picture without pixels"));
        }
        // Of packed RGB the green.
        let (plane, channels) = match picture.pixels {
            Pixels::I420 { y, .. } => (y, 1),
            Pixels::Rgb(plane) => (plane, 3),
        };
        let (from, _) = geometry(picture.width, picture.height, self.region, Fit::Squeeze, GLANCE);
        let [width, height] = GLANCE;
        out.resize(width * height, 0);
        let sums = &mut self.sums.whole;
        sums.resize(from.width * channels, 0);
        let band =
            |i: usize, of: usize, length: usize| i * length / of..((i + 1) * length / of).max(i * length / of + 1);
        for (y, line) in out.chunks_exact_mut(width).enumerate() {
            // Two or three rows of each band are enough, and no more than a sum has room for.
            let rows = band(y, height, from.height).step_by((from.height / (height * 2)).max(1)).take(256);
            let count = rows.len() as u32;
            sums.fill(0);
            for row in rows {
                let start = (from.y + row) * plane.stride + from.x * channels;
                let samples = plane.data.get(start..start + from.width * channels);
                let samples =
                    samples.ok_or_else(|| Error::internal("a picture's plane is shorter than its size says"))?;
                sums.iter_mut().zip(samples).for_each(|(sum, sample)| *sum += u16::from(*sample));
            }
            for (x, mean) in line.iter_mut().enumerate() {
                let columns = band(x, width, from.width);
                let of_band = columns.len() as u32 * count;
                let sum: u32 = columns.map(|c| u32::from(sums[c * channels + channels / 2])).sum();
                *mean = ((sum + of_band / 2) / of_band) as u8;
            }
        }
        Ok(())
    }

    /// Fills `out`, one a view.
    pub fn scale(&mut self, picture: &Picture, out: &mut Vec<Scaled>) -> Result<()> {
        if picture.width == 0 || picture.height == 0 {
            return Err(Error::internal("a picture without pixels"));
        }
        out.resize_with(self.specs.len(), Scaled::default);
        for (spec, scaled) in self.specs.iter().zip(out) {
            if spec.rgb {
                let (from, to) = geometry(picture.width, picture.height, self.region, spec.fit, spec.size);
                rgb(picture, from, spec.size, to, &mut self.scratch, &mut self.sums, &mut scaled.rgb)?;
            }
            if let Some(size) = spec.luma_size() {
                let (from, to) = geometry(picture.width, picture.height, self.region, spec.fit, size);
                luma(picture, from, size, to, &mut self.scratch[0], &mut self.sums, &mut scaled.luma)?;
            }
        }
        Ok(())
    }
}

/// Which part of the picture goes to which part of the view.
fn geometry(width: usize, height: usize, region: Region, fit: Fit, size: [usize; 2]) -> (Rect, Rect) {
    let [rx, ry, rw, rh] = region.0;
    let (x, w) = span(rx, rw, width);
    let (y, h) = span(ry, rh, height);
    let whole = Rect { x: 0, y: 0, width: size[0], height: size[1] };
    let (sw, sh) = (size[0] as f64, size[1] as f64);
    match fit {
        Fit::Squeeze => (Rect { x, y, width: w, height: h }, whole),
        Fit::Crop => {
            // The short side scaled to 256/224 of the model's, and the centre cut out of it, is a cut of 224/256 of the
            // short side out of the source, scaled once.
            let scale = (w as f64 / sw).min(h as f64 / sh) * 224.0 / 256.0;
            let cw = ((sw * scale).round() as usize).clamp(1, w);
            let ch = ((sh * scale).round() as usize).clamp(1, h);
            (Rect { x: x + (w - cw) / 2, y: y + (h - ch) / 2, width: cw, height: ch }, whole)
        }
        Fit::Letterbox => {
            let scale = (sw / w as f64).min(sh / h as f64);
            let tw = ((w as f64 * scale).round() as usize).clamp(1, size[0]);
            let th = ((h as f64 * scale).round() as usize).clamp(1, size[1]);
            let to = Rect { x: (size[0] - tw) / 2, y: (size[1] - th) / 2, width: tw, height: th };
            (Rect { x, y, width: w, height: h }, to)
        }
    }
}

/// A fraction of `length` samples, at least one of them.
fn span(start: f64, extent: f64, length: usize) -> (usize, usize) {
    let from = ((start * length as f64).round() as usize).min(length - 1);
    let to = (((start + extent) * length as f64).round() as usize).clamp(from + 1, length);
    (from, to - from)
}

/// The same rectangle on a plane of half the size, its border rounded outwards.
fn half(r: Rect) -> Rect {
    let (x, y) = (r.x / 2, r.y / 2);
    Rect { x, y, width: (r.x + r.width).div_ceil(2) - x, height: (r.y + r.height).div_ceil(2) - y }
}

fn rgb(
    picture: &Picture,
    from: Rect,
    size: [usize; 2],
    to: Rect,
    scratch: &mut [Vec<u8>; 3],
    sums: &mut Sums,
    out: &mut Vec<u8>,
) -> Result<()> {
    let bars = to.width != size[0] || to.height != size[1];
    out.resize(size[0] * size[1] * 3, 0);
    match picture.pixels {
        Pixels::Rgb(plane) if !bars => resize(plane, 3, from, to.width, to.height, sums, out),
        Pixels::Rgb(plane) => {
            let scaled = &mut scratch[0];
            scaled.resize(to.width * to.height * 3, 0);
            resize(plane, 3, from, to.width, to.height, sums, scaled)?;
            out.fill(0);
            for (row, line) in scaled.chunks_exact(to.width * 3).enumerate() {
                let start = ((to.y + row) * size[0] + to.x) * 3;
                out[start..start + line.len()].copy_from_slice(line);
            }
            Ok(())
        }
        Pixels::I420 { y, u, v, matrix, full_range } => {
            for (plane, part, buffer) in
                [(y, from, 0), (u, half(from), 1), (v, half(from), 2)].map(|(p, r, i)| (p, r, i))
            {
                scratch[buffer].resize(to.width * to.height, 0);
                resize(plane, 1, part, to.width, to.height, sums, &mut scratch[buffer])?;
            }
            if bars {
                out.fill(0);
            }
            let [ys, us, vs] = scratch;
            let convert = YcbcrToRgb::new(matrix, full_range);
            for row in 0..to.height {
                let start = ((to.y + row) * size[0] + to.x) * 3;
                let line = &mut out[start..start + to.width * 3];
                let at = row * to.width..(row + 1) * to.width;
                let samples = ys[at.clone()].iter().zip(&us[at.clone()]).zip(&vs[at]);
                for (pixel, ((&y, &u), &v)) in line.chunks_exact_mut(3).zip(samples) {
                    pixel.copy_from_slice(&convert.pixel(y, u, v));
                }
            }
            Ok(())
        }
    }
}

fn luma(
    picture: &Picture,
    from: Rect,
    size: [usize; 2],
    to: Rect,
    scratch: &mut Vec<u8>,
    sums: &mut Sums,
    out: &mut Vec<u8>,
) -> Result<()> {
    let bars = to.width != size[0] || to.height != size[1];
    out.resize(size[0] * size[1], 0);
    if bars {
        out.fill(0);
    }
    let place = |line: &[u8], row: usize, out: &mut [u8]| {
        let start = (to.y + row) * size[0] + to.x;
        out[start..start + line.len()].copy_from_slice(line);
    };
    match picture.pixels {
        Pixels::Rgb(plane) => {
            scratch.resize(to.width * to.height * 3, 0);
            resize(plane, 3, from, to.width, to.height, sums, scratch)?;
            for row in 0..to.height {
                let start = (to.y + row) * size[0] + to.x;
                let pixels = scratch[row * to.width * 3..(row + 1) * to.width * 3].chunks_exact(3);
                for (l, p) in out[start..start + to.width].iter_mut().zip(pixels) {
                    // BT.601's weights in 1/65536, as OpenCV's RGB to grey.
                    *l = ((19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 32768) >> 16)
                        as u8;
                }
            }
        }
        Pixels::I420 { y, full_range, .. } => {
            scratch.resize(to.width * to.height, 0);
            resize(y, 1, from, to.width, to.height, sums, scratch)?;
            if !full_range {
                for l in scratch.iter_mut() {
                    *l = ((i32::from(*l) - 16) * 255 / 219).clamp(0, 255) as u8;
                }
            }
            for (row, line) in scratch.chunks_exact(to.width).enumerate() {
                place(line, row, out);
            }
        }
    }
    Ok(())
}

/// Averages (or, for a small source, interpolates) a part of an interleaved plane to `width` x `height` samples.
fn resize(
    plane: Plane,
    channels: usize,
    from: Rect,
    width: usize,
    height: usize,
    sums: &mut Sums,
    out: &mut [u8],
) -> Result<()> {
    let start = from.y * plane.stride + from.x * channels;
    let end = start + (from.height - 1) * plane.stride + from.width * channels;
    if plane.data.len() < end || out.len() < width * height * channels {
        return Err(Error::internal("a picture's plane is shorter than its size says"));
    }
    if from.width < width || from.height < height {
        return interpolate(plane, channels, from, width, height, out);
    }
    let plane = Plane { data: &plane.data[start..end], ..plane };
    match channels {
        1 => average::<1>(plane, [from.width, from.height], [width, height], sums, out),
        _ => average::<3>(plane, [from.width, from.height], [width, height], sums, out),
    }
    Ok(())
}

/// Averages a plane of `size` to `to` samples of `C` channels, none of it larger than `size`: each is the mean of the area
/// that it covers, with what it covers of the samples at its border, rounded to the nearest. What OpenCV's INTER_AREA
/// gives, in a tenth of its time for a picture of 720 lines: whole rows are summed first, many samples at a time.
fn average<const C: usize>(plane: Plane, size: [usize; 2], to: [usize; 2], sums: &mut Sums, out: &mut [u8]) {
    let line = |y: usize| &plane.data[y * plane.stride..][..size[0] * C];
    let Sums { whole, parts, columns } = sums;
    parts.resize(size[0] * C, 0.0);
    columns.clear();
    columns.extend((0..to[0]).map(|column| Cover::new(column, size[0], to[0])));
    // A sample's area, where one of the plane's is `to[0]` wide and `to[1]` high. A column's sum is a whole number below
    // 2^24, which a float holds.
    let area = 1.0 / (size[0] as f32 * size[1] as f32);
    let inside = to[0] as f32;
    for (row, out) in out.chunks_exact_mut(to[0] * C).take(to[1]).enumerate() {
        let rows = Cover::new(row, size[1], to[1]);
        let edges = line(rows.from).iter().zip(line(rows.to));
        for (sum, (first, last)) in parts.iter_mut().zip(edges) {
            *sum = f32::from(*first) * rows.first + f32::from(*last) * rows.last;
        }
        let mut between = rows.from + 1..rows.to;
        while !between.is_empty() {
            // No more rows than a sum has room for.
            let some = between.start..between.end.min(between.start + 256);
            between.start = some.end;
            whole.clear();
            whole.resize(size[0] * C, 0);
            for y in some {
                whole.iter_mut().zip(line(y)).for_each(|(sum, sample)| *sum += u16::from(*sample));
            }
            parts.iter_mut().zip(&*whole).for_each(|(sum, whole)| *sum += f32::from(*whole) * to[1] as f32);
        }
        for (pixel, columns) in out.chunks_exact_mut(C).zip(&*columns) {
            let mut sum: [f32; C] = std::array::from_fn(|c| {
                parts[columns.from * C + c] * columns.first + parts[columns.to * C + c] * columns.last
            });
            // Nothing lies between where first and last are one.
            let between = parts.get((columns.from + 1) * C..columns.to * C).unwrap_or_default();
            for samples in between.chunks_exact(C) {
                sum.iter_mut().zip(samples).for_each(|(sum, sample)| *sum += sample * inside);
            }
            for (mean, sum) in pixel.iter_mut().zip(sum) {
                *mean = (sum * area + 0.5) as u8;
            }
        }
    }
}

/// Which of `length` samples one of `of` equal parts covers: the whole ones lie between the first and the last, which it
/// covers in parts, counted in `of`ths of a sample.
#[derive(Debug)]
struct Cover {
    from: usize,
    to: usize,
    first: f32,
    last: f32,
}

impl Cover {
    fn new(part: usize, length: usize, of: usize) -> Cover {
        let (begin, end) = (part * length, (part + 1) * length);
        let (from, to) = (begin / of, (end - 1) / of);
        // A part is at least one sample long: one that begins and ends in the same sample is all of it.
        let first = if from == to { 0 } else { (from + 1) * of - begin };
        Cover { from, to, first: first as f32, last: (end - begin.max(to * of)) as f32 }
    }
}

/// What is to be larger than it is, in width or height, is interpolated by OpenCV.
fn interpolate(plane: Plane, channels: usize, from: Rect, width: usize, height: usize, out: &mut [u8]) -> Result<()> {
    let failed = |e: opencv::Error| Error::internal("OpenCV could not scale a picture").caused_by(e);
    let start = from.y * plane.stride + from.x * channels;
    let end = start + (from.height - 1) * plane.stride + from.width * channels;
    let kind = core::CV_MAKETYPE(core::CV_8U, channels as i32);
    // SAFETY: both headers point into slices that outlive this call, and were checked to hold what the sizes and
    // strides say (`resize`); OpenCV only reads through the first.
    let source = unsafe {
        core::Mat::new_rows_cols_with_data_unsafe(
            from.height as i32,
            from.width as i32,
            kind,
            plane.data[start..end].as_ptr().cast_mut().cast(),
            plane.stride,
        )
    }
    .map_err(failed)?;
    let mut target = unsafe {
        core::Mat::new_rows_cols_with_data_unsafe(
            height as i32,
            width as i32,
            kind,
            out.as_mut_ptr().cast(),
            width * channels,
        )
    }
    .map_err(failed)?;
    let before = target.data();
    let size = core::Size::new(width as i32, height as i32);
    imgproc::resize(&source, &mut target, size, 0.0, 0.0, imgproc::INTER_AREA).map_err(failed)?;
    // OpenCV would have put its result elsewhere had the target not fitted.
    if target.data() != before {
        return Err(Error::internal("OpenCV did not scale in place"));
    }
    Ok(())
}

/// ITU-R BT.601 / BT.709 to RGB in 16-bit fixed point.
struct YcbcrToRgb {
    y_offset: i32,
    y: i32,
    rv: i32,
    gu: i32,
    gv: i32,
    bu: i32,
}

impl YcbcrToRgb {
    fn new(matrix: Matrix, full_range: bool) -> Self {
        let (kr, kb) = match matrix {
            Matrix::Bt601 => (0.299, 0.114),
            Matrix::Bt709 => (0.2126, 0.0722),
        };
        let kg = 1.0 - kr - kb;
        let (luma, chroma) = if full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |x: f64| (x * 65536.0).round() as i32;
        YcbcrToRgb {
            y_offset: if full_range { 0 } else { 16 },
            y: fixed(luma),
            rv: fixed(2.0 * (1.0 - kr) * chroma),
            gu: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            gv: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            bu: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }

    fn pixel(&self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let y = (i32::from(y) - self.y_offset) * self.y + 32768;
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let clip = |x: i32| (x >> 16).clamp(0, 255) as u8;
        [clip(y + self.rv * v), clip(y + self.gu * u + self.gv * v), clip(y + self.bu * u)]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_glance_shows_the_region_in_every_size_and_format() {
        for (width, height) in [(1280, 720), (640, 480), (97, 61), (1, 1), (3000, 2200)] {
            let value = |x: usize, y: usize| (x * 200 / width + if y * 2 >= height { 50 } else { 0 }) as u8;
            let grey: Vec<u8> = (0..width * height).map(|i| value(i % width, i / width)).collect();
            let rgb: Vec<u8> = grey.iter().flat_map(|v| [0, *v, 0]).collect();
            let plane = Plane { data: &grey, stride: width };
            let i420 = Pixels::I420 { y: plane, u: plane, v: plane, matrix: Matrix::Bt601, full_range: true };
            let mut glances = [i420, Pixels::Rgb(Plane { data: &rgb, stride: width * 3 })].map(|pixels| {
                let picture = Picture { width, height, time: Duration::ZERO, dropped: 0, pixels };
                let mut out = Vec::new();
                Scaler::new(Vec::new(), Region([0.5, 0.0, 0.5, 1.0])).glance(&picture, &mut out).unwrap();
                out
            });
            let [of_luma, of_green] = &mut glances;
            assert_eq!(of_luma, of_green);
            assert_eq!(of_luma.len(), GLANCE[0] * GLANCE[1]);
            if width > 1 {
                // The region begins at half the width, at 100 of 200.
                let mean = of_luma.iter().map(|v| f64::from(*v)).sum::<f64>() / of_luma.len() as f64;
                assert!((mean - 175.0).abs() < 5.0, "{width}x{height}: {mean}");
                assert!(of_luma[0] >= 95 && of_luma[127] > of_luma[0] + 80, "{width}x{height}");
                assert!(of_luma[127 * 128] >= of_luma[0] + 49, "{width}x{height}");
            }
        }
        let plane = Plane { data: &[0; 10], stride: 3000 };
        let picture =
            Picture { width: 1000, height: 1000, time: Duration::ZERO, dropped: 0, pixels: Pixels::Rgb(plane) };
        assert!(Scaler::new(Vec::new(), Region::WHOLE).glance(&picture, &mut Vec::new()).is_err());
    }

    fn rgb_picture(data: &[u8], width: usize, height: usize) -> Picture<'_> {
        let pixels = Pixels::Rgb(Plane { data, stride: width * 3 });
        Picture { width, height, time: Duration::ZERO, dropped: 0, pixels }
    }

    fn spec(size: [usize; 2], fit: Fit, upscale: usize) -> ViewSpec {
        ViewSpec { size, fit, rgb: true, flow: Some(FlowMethod { upscale, ..FlowMethod::default() }) }
    }

    #[test]
    fn areas_are_averaged_as_opencv_does_it() {
        let mut state = 88172645463325252u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as u8
        };
        for (size, to) in [
            ([1280, 720], [128, 128]),
            ([640, 360], [64, 64]),
            ([130, 97], [128, 96]),
            ([97, 61], [7, 5]),
            ([64, 64], [64, 64]),
            ([300, 9], [1, 9]),
            ([9, 700], [9, 1]),
            ([5, 3], [3, 2]),
        ] {
            for channels in [1, 3] {
                // A part of a plane, whose rows are longer than it.
                let stride = (size[0] + 5) * channels;
                let data: Vec<u8> = (0..stride * (size[1] + 3)).map(|_| random()).collect();
                let plane = Plane { data: &data, stride };
                let from = Rect { x: 4, y: 2, width: size[0], height: size[1] };
                let [mut own, mut opencv] = [0, 1].map(|_| vec![0; to[0] * to[1] * channels]);
                resize(plane, channels, from, to[0], to[1], &mut Sums::default(), &mut own).unwrap();
                interpolate(plane, channels, from, to[0], to[1], &mut opencv).unwrap();
                let furthest = own.iter().zip(&opencv).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                let apart = own.iter().zip(&opencv).filter(|(a, b)| a != b).count();
                // Halves are rounded up here, and to the even number there; and OpenCV sums floats.
                assert!(furthest <= 1 && apart * 50 <= own.len(), "{size:?} to {to:?}: {apart} of {}", own.len());
            }
        }
    }

    #[test]
    fn squeezing_averages_areas() {
        // Four columns 0, 40, 80, 120 become two of 20 and 100.
        let data: Vec<u8> = (0..4 * 2).flat_map(|i| [(i % 4 * 40) as u8; 3]).collect();
        let mut out = Vec::new();
        Scaler::new(vec![spec([2, 2], Fit::Squeeze, 1)], Region::WHOLE)
            .scale(&rgb_picture(&data, 4, 2), &mut out)
            .unwrap();
        assert_eq!(out[0].rgb, [[20; 3], [100; 3], [20; 3], [100; 3]].concat());
        assert_eq!(out[0].luma, [20, 100, 20, 100]);
    }

    #[test]
    fn the_papers_crop_is_the_centre_224_of_a_256_short_side() {
        let (from, to) = geometry(340, 256, Region::WHOLE, Fit::Crop, [224, 224]);
        assert_eq!(from, Rect { x: 58, y: 16, width: 224, height: 224 });
        assert_eq!(to, Rect { x: 0, y: 0, width: 224, height: 224 });
        let (from, _) = geometry(1080, 1920, Region::WHOLE, Fit::Crop, [112, 112]);
        assert_eq!(from, Rect { x: 67, y: 487, width: 945, height: 945 });
    }

    #[test]
    fn letterbox_keeps_the_shape_on_black() {
        let (_, to) = geometry(1920, 1080, Region::WHOLE, Fit::Letterbox, [224, 224]);
        assert_eq!(to, Rect { x: 0, y: 49, width: 224, height: 126 });
        let data = [200u8; 4 * 2 * 3];
        let mut out = Vec::new();
        Scaler::new(vec![spec([4, 4], Fit::Letterbox, 2)], Region::WHOLE)
            .scale(&rgb_picture(&data, 4, 2), &mut out)
            .unwrap();
        let rows: Vec<bool> = out[0].rgb.chunks(12).map(|r| r.iter().all(|&v| v == 200)).collect();
        assert_eq!(rows, [false, true, true, false]);
        assert_eq!(out[0].luma.iter().filter(|&&v| v == 0).count(), 32);
    }

    #[test]
    fn a_region_shows_only_itself() {
        let data: Vec<u8> =
            (0..8 * 8).flat_map(|i| if i % 8 >= 4 && i / 8 >= 4 { [250, 0, 0] } else { [0, 0, 250] }).collect();
        let mut out = Vec::new();
        let region = Region([0.5, 0.5, 0.5, 0.5]);
        Scaler::new(vec![spec([2, 2], Fit::Squeeze, 1)], region).scale(&rgb_picture(&data, 8, 8), &mut out).unwrap();
        assert_eq!(out[0].rgb, [[250, 0, 0]; 4].concat());
    }

    #[test]
    fn planar_and_packed_pictures_of_one_colour_agree() {
        // BT.601 limited range of (180, 90, 30), rounded.
        let (y, u, v) = (111u8, 88u8, 172u8);
        let (ys, us, vs) = (vec![y; 7 * 5], vec![u; 4 * 3], vec![v; 4 * 3]);
        let plane = |data, stride| Plane { data, stride };
        let picture = Picture {
            width: 7,
            height: 5,
            time: Duration::ZERO,
            dropped: 0,
            pixels: Pixels::I420 {
                y: plane(&ys, 7),
                u: plane(&us, 4),
                v: plane(&vs, 4),
                matrix: Matrix::Bt601,
                full_range: false,
            },
        };
        let mut out = Vec::new();
        Scaler::new(vec![spec([4, 4], Fit::Squeeze, 2)], Region::WHOLE).scale(&picture, &mut out).unwrap();
        for pixel in out[0].rgb.chunks(3) {
            for (found, expected) in pixel.iter().zip([180, 90, 30]) {
                assert!(found.abs_diff(expected) <= 3, "{pixel:?}");
            }
        }
        assert!(out[0].luma.iter().all(|l| l.abs_diff(110) <= 1), "{:?}", out[0].luma[0]);
    }

    #[test]
    fn full_range_ends_stay_black_and_white() {
        for (full, black, white) in [(true, 0, 255), (false, 16, 235)] {
            for matrix in [Matrix::Bt601, Matrix::Bt709] {
                let c = YcbcrToRgb::new(matrix, full);
                assert_eq!(c.pixel(black, 128, 128), [0, 0, 0]);
                assert_eq!(c.pixel(white, 128, 128), [255, 255, 255]);
            }
        }
    }

    #[test]
    fn a_single_pixel_and_a_single_row_fill_the_view() {
        let mut out = Vec::new();
        for (w, h) in [(1, 1), (1, 500), (500, 1), (2, 3)] {
            for fit in [Fit::Squeeze, Fit::Crop, Fit::Letterbox] {
                let data = vec![77u8; w * h * 3];
                Scaler::new(vec![spec([8, 8], fit, 2)], Region::WHOLE)
                    .scale(&rgb_picture(&data, w, h), &mut out)
                    .unwrap();
                assert!(out[0].rgb.contains(&77), "{w}x{h} {fit:?}");
            }
        }
    }

    #[test]
    fn a_plane_that_is_too_short_is_an_error() {
        let data = [0u8; 10];
        let e = Scaler::new(vec![spec([2, 2], Fit::Squeeze, 1)], Region::WHOLE)
            .scale(&rgb_picture(&data, 4, 4), &mut Vec::new())
            .unwrap_err();
        assert!(e.to_string().contains("shorter"), "{e}");
    }
}
