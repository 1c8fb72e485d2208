//! Plots of a run as SVG and PNG: the raw values faint, a smoothed line on top.
//!
//! The smoothed value at a point is that of the least-squares line through the points around it, up to a twentieth of
//! all on either side: unlike a running mean it neither lags nor bends at the ends. The PNG is drawn at three times its
//! size and averaged down, because the rasteriser does not smooth thick lines. The font (`DejaVu` Sans: Latin, Greek
//! and Cyrillic) is part of the program, so no font needs to be installed. With several series only the smoothed lines
//! are drawn. Exact values that fall by orders of magnitude are drawn on a logarithmic axis, without smoothing.

mod runs;

pub use runs::{Axis, curve_of_runs, write};

mod heat_map;

pub use heat_map::{HeatMap, draw_heat_map};

use crate::{Error, Result};
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::sync::OnceLock;

/// Width and height of a plot in pixels.
const SIZE: (u32, u32) = (900, 500);

/// Factor by which the PNG is drawn larger before it is averaged down.
const OVERSAMPLING: u32 = 3;

/// Colours that remain distinct with colour blindness (Okabe and Ito 2008; black, and three of P. Tol's at the end).
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(136, 34, 85),
    RGBColor(153, 153, 51),
    RGBColor(119, 119, 119),
];

const INK: RGBColor = RGBColor(60, 60, 67);
const GRID: RGBColor = RGBColor(226, 226, 231);

/// Largest number of points that are drawn as dots too; more are drawn as a line only.
const MOST_DOTS: usize = 400;

/// A line plot: labels and one or more series of points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// Title above the plot.
    pub title: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Named series of (x, y) with ascending x. Points that are not finite are left out.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// A plot in two formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// SVG document.
    pub svg: String,
    /// Contents of a PNG file, 900 by 500 pixels.
    pub png: Vec<u8>,
}

/// Draws a curve, smoothed.
///
/// # Errors
/// If no point is finite.
pub fn draw(curve: &Curve) -> Result<Drawn> {
    draw_as(curve, Kind::Noisy)
}

/// Draws a curve of exact values on a logarithmic vertical axis, without smoothing. Points that are not above zero are
/// left out.
///
/// # Errors
/// If no point is finite and above zero.
pub fn draw_logarithmic(curve: &Curve) -> Result<Drawn> {
    let logarithm = |(name, points): &(String, Vec<(f64, f64)>)| {
        (name.clone(), points.iter().map(|(x, y)| (*x, y.log10())).collect())
    };
    draw_as(&Curve { series: curve.series.iter().map(logarithm).collect(), ..curve.clone() }, Kind::Logarithms)
}

/// Kind of values on the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Noisy measurements, to be smoothed.
    Noisy,
    /// Decimal logarithms of exact values.
    Logarithms,
}

fn draw_as(curve: &Curve, kind: Kind) -> Result<Drawn> {
    load_font()?;
    let finite = |(name, points): &(String, Vec<(f64, f64)>)| {
        let points = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        (name.clone(), points)
    };
    let curve = Curve { series: curve.series.iter().map(finite).collect(), ..curve.clone() };
    both(&(&curve, kind))
}

/// A plot that can be painted on either kind of canvas.
trait Painting {
    /// Paints the plot onto an area with all lengths multiplied by `scale`.
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<()>
    where
        B::ErrorType: 'static;
}

impl Painting for (&Curve, Kind) {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        paint(self.0, self.1, area, scale)
    }
}

/// Paints a plot in both formats.
fn both(painting: &impl Painting) -> Result<Drawn> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    painting.paint(&area, 1)?;
    drop(area);

    let large = (SIZE.0 * OVERSAMPLING, SIZE.1 * OVERSAMPLING);
    let mut pixels = vec![255; (large.0 * large.1 * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
    painting.paint(&area, OVERSAMPLING)?;
    drop(area);
    Ok(Drawn { svg, png: encode(&shrink(&pixels))? })
}

/// Paints a curve onto a white area with all lengths multiplied by `scale`.
fn paint<B: DrawingBackend>(curve: &Curve, kind: Kind, area: &DrawingArea<B, Shift>, scale: u32) -> Result<()>
where
    B::ErrorType: 'static,
{
    let (x, y) = ranges(curve)?;
    let (rises, scale) = (rises(curve), scale as i32);
    area.fill(&WHITE).map_err(unpainted)?;
    let mut chart = ChartBuilder::on(area)
        .caption(&curve.title, font(20, scale))
        .margin(12 * scale)
        .margin_right(24 * scale)
        .x_label_area_size(46 * scale)
        .y_label_area_size(64 * scale)
        .build_cartesian_2d(x, y)
        .map_err(unpainted)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(scale as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.stroke_width(scale as u32))
        .set_all_tick_mark_size(4 * scale)
        .label_style(font(13, scale))
        .axis_desc_style(font(15, scale))
        .x_desc(&curve.x_label)
        .y_desc(&curve.y_label)
        .x_labels(10)
        .y_labels(8)
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| if kind == Kind::Noisy { number(*value) } else { power(*value) })
        .draw()
        .map_err(unpainted)?;
    for ((name, points), colour) in curve.series.iter().zip(COLOURS.iter().cycle()) {
        match (kind, curve.series.len()) {
            (Kind::Noisy, 1) => paint_series(&mut chart, name, points, *colour, scale)?,
            (Kind::Noisy, _) => paint_line(&mut chart, name, smoothed(points, points.len() / 20), *colour, scale)?,
            (Kind::Logarithms, _) => paint_line(&mut chart, name, points.clone(), *colour, scale)?,
        }
    }
    chart
        .configure_series_labels()
        // A rising curve leaves the lower right corner free, a falling one the upper right, and several curves that
        // fall at different rates on a logarithmic axis the lower left.
        .position(match kind {
            Kind::Logarithms => SeriesLabelPosition::LowerLeft,
            Kind::Noisy if rises => SeriesLabelPosition::LowerRight,
            Kind::Noisy => SeriesLabelPosition::UpperRight,
        })
        .margin(10 * scale as u32)
        .legend_area_size(26 * scale as u32)
        .background_style(WHITE.mix(0.8))
        .label_font(font(14, scale))
        .draw()
        .map_err(unpainted)?;
    area.present().map_err(unpainted)
}

type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn paint_series<'a, B: DrawingBackend + 'a>(
    chart: &mut Chart<'a, B>,
    name: &str,
    points: &[(f64, f64)],
    colour: RGBColor,
    scale: i32,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let (reach, key) = (points.len() / 20, |style| key(style, scale));
    let bold = colour.stroke_width(5 * scale as u32 / 2);
    if reach == 0 {
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), bold)).map_err(unpainted)?;
        line.label(name).legend(key(bold));
    } else {
        let faint = colour.mix(0.3).stroke_width(scale as u32);
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), faint)).map_err(unpainted)?;
        line.label(name).legend(key(faint));
        let line = chart.draw_series(LineSeries::new(smoothed(points, reach), bold)).map_err(unpainted)?;
        line.label(format!("{name}, smoothed")).legend(key(bold));
    }
    if points.len() <= MOST_DOTS {
        let dot = |point: &(f64, f64)| Circle::new(*point, 5 * scale / 2, colour.mix(0.3).filled());
        chart.draw_series(points.iter().map(dot)).map_err(unpainted)?;
    }
    Ok(())
}

/// Paints a line without dots, for a plot with several series.
fn paint_line<'a, B: DrawingBackend + 'a>(
    chart: &mut Chart<'a, B>,
    name: &str,
    points: Vec<(f64, f64)>,
    colour: RGBColor,
    scale: i32,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let bold = colour.stroke_width(2 * scale as u32);
    let line = chart.draw_series(LineSeries::new(points, bold)).map_err(unpainted)?;
    line.label(name).legend(key(bold, scale));
    Ok(())
}

/// Returns the sample of a line for the legend.
fn key(style: ShapeStyle, scale: i32) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new(vec![(x, y), (x + 20 * scale, y)], style)
}

/// Returns at each point the value of the least-squares line through it and up to `reach` points on either side.
fn smoothed(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let fitted = |index: usize| {
        let around = &points[index.saturating_sub(reach)..points.len().min(index + reach + 1)];
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| around.iter().map(of).sum::<f64>() / around.len() as f64;
        let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
        let spread = mean(&|point| (point.0 - x).powi(2));
        let slope = if spread > 0.0 { mean(&|point| (point.0 - x) * (point.1 - y)) / spread } else { 0.0 };
        y + slope * (points[index].0 - x)
    };
    points.iter().enumerate().map(|(index, (x, _))| (*x, fitted(index))).collect()
}

/// Returns the ranges of the axes: all points, with a small margin on each side.
fn ranges(curve: &Curve) -> Result<(std::ops::Range<f64>, std::ops::Range<f64>)> {
    let all = || curve.series.iter().flat_map(|(_, points)| points);
    let range = |numbers: &mut dyn Iterator<Item = f64>| {
        numbers.fold(None, |range: Option<(f64, f64)>, number| {
            let (low, high) = range.unwrap_or((number, number));
            Some((low.min(number), high.max(number)))
        })
    };
    let (Some(x), Some(y)) = (range(&mut all().map(|point| point.0)), range(&mut all().map(|point| point.1))) else {
        return Err(Error::input(format!("`{}` cannot be drawn: it has no finite point", curve.title)));
    };
    let air = |(low, high): (f64, f64), share: f64| {
        let air = if high > low { (high - low) * share } else { 0.5_f64.max(high.abs() * 0.1) };
        low - air..high + air
    };
    Ok((air(x, 0.01), air(y, 0.06)))
}

/// Returns true if the first series ends higher than it begins.
fn rises(curve: &Curve) -> bool {
    let points = curve.series.first().map_or(&[][..], |(_, points)| points);
    let third = points.len().div_ceil(3);
    let sum = |points: &[(f64, f64)]| points.iter().map(|(_, y)| y).sum::<f64>();
    sum(&points[points.len() - third..]) >= sum(&points[..third])
}

/// Formats a number on an axis without trailing zeros.
fn number(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e7).contains(&value.abs()) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Formats the label of a logarithmic axis, a power of ten.
fn power(exponent: f64) -> String {
    format!("{:.0e}", 10f64.powf(exponent))
}

fn font(points: i32, scale: i32) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", points * scale)).color(&INK)
}

/// Registers the embedded font once.
fn load_font() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let bytes = include_bytes!("../../assets/DejaVuSans-subset.ttf");
    let loaded = LOADED.get_or_init(|| register_font("sans-serif", FontStyle::Normal, bytes).is_ok());
    if *loaded { Ok(()) } else { Err(Error::runtime("the embedded font cannot be read")) }
}

/// Averages blocks of pixels (red, green, blue) into one each.
fn shrink(pixels: &[u8]) -> Vec<u8> {
    let (width, height, factor) = (SIZE.0 as usize, SIZE.1 as usize, OVERSAMPLING as usize);
    let mut sums = vec![0u16; width * height * 3];
    for (y, row) in pixels.chunks_exact(width * factor * 3).enumerate() {
        let target = &mut sums[y / factor * width * 3..][..width * 3];
        for (block, sum) in row.chunks_exact(factor * 3).zip(target.chunks_exact_mut(3)) {
            for (index, value) in block.iter().enumerate() {
                sum[index % 3] += u16::from(*value);
            }
        }
    }
    sums.into_iter().map(|sum| (sum / (factor * factor) as u16) as u8).collect()
}

fn encode(pixels: &[u8]) -> Result<Vec<u8>> {
    let failed = |error: png::EncodingError| Error::runtime(format!("cannot write the picture as PNG: {error}"));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(pixels)).map_err(failed)?;
    Ok(bytes)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that `map_err` wants")]
fn unpainted<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> Error {
    Error::runtime(format!("cannot draw the picture: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: usize) -> Curve {
        let noise = |step: usize| ((step * 7919) % 101) as f64 / 101.0 - 0.5;
        let reward = |step: usize| (step as f64, 1.0 - (-(step as f64) / 30.0).exp() + 0.3 * noise(step));
        Curve {
            title: "Mean reward".into(),
            x_label: "step".into(),
            y_label: "reward".into(),
            series: vec![("reward".into(), (1..=points).map(reward).collect())],
        }
    }

    #[test]
    fn smoothing_neither_lags_nor_bends_at_the_ends() {
        let line: Vec<(f64, f64)> = (0..9).map(|x| (f64::from(x), 2.0 * f64::from(x) - 1.0)).collect();
        for ((_, smooth), (_, y)) in smoothed(&line, 3).into_iter().zip(&line) {
            assert!((smooth - y).abs() < 1e-12);
        }
        // Inside, the middle of an evenly spaced window is its mean. At the left end, through (0, 0) and (1, 0).
        let spike = [(0.0, 0.0), (1.0, 0.0), (2.0, 3.0), (3.0, 0.0), (4.0, 0.0)];
        assert_eq!(smoothed(&spike, 1).iter().map(|point| point.1).collect::<Vec<_>>(), [0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn the_svg_says_what_it_shows_and_escapes_it() {
        let mut curve = curve(100);
        curve.title = "a < b & c".into();
        let svg = draw(&curve).unwrap().svg;
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("a < b"));
        assert!(svg.contains("reward, smoothed") && svg.contains("step"));
    }

    #[test]
    fn the_png_is_a_picture_with_white_corners_and_a_line_in_it() {
        let png = draw(&curve(100)).unwrap().png;
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        assert_eq!(pixels[..3], [255; 3]);
        assert_eq!(pixels[pixels.len() - 3..], [255; 3]);
        let blue = pixels.chunks(3).filter(|pixel| pixel[2] > 140 && pixel[0] < 60).count();
        assert!(blue > 800, "{blue} pixels of the line");
        // The title: dark pixels in the top margin, where only text can be.
        let dark = pixels[..900 * 3 * 40].chunks(3).filter(|pixel| pixel[0] < 120).count();
        assert!(dark > 100, "{dark} pixels of the title");
    }

    #[test]
    fn several_series_are_told_apart_by_their_names() {
        let mut both = curve(100);
        both.series = vec![("grpo".into(), both.series[0].1.clone()), ("dapo".into(), vec![(1.0, 0.0), (100.0, 1.0)])];
        let svg = draw(&both).unwrap().svg;
        assert!(svg.contains("grpo") && svg.contains("dapo") && !svg.contains("smoothed"));
    }

    #[test]
    fn the_same_curve_gives_the_same_bytes() {
        assert_eq!(draw(&curve(40)).unwrap(), draw(&curve(40)).unwrap());
    }

    #[test]
    fn plots_of_one_point_equal_values_and_huge_values_have_a_dot_for_each_point() {
        let cases = [
            (vec![(1.0, 0.5)], 1),
            (vec![(1.0, 0.0), (2.0, 0.0)], 2),
            // The last point is not finite and is left out.
            (vec![(0.0, -1e12), (1e9, 1e12), (2e9, f64::NAN)], 2),
        ];
        for (points, dots) in cases {
            let drawn = draw(&Curve { series: vec![("value".into(), points)], ..Curve::default() }).unwrap();
            assert_eq!(drawn.svg.matches("<circle").count(), dots, "{}", drawn.svg);
            assert!(drawn.svg.lines().any(|line| line == "value"), "no legend in {}", drawn.svg);
            assert_eq!(drawn.png[..8], *b"\x89PNG\r\n\x1a\n");
            // Width and height, big-endian, behind the length and the name of the first chunk.
            let size = [16, 20].map(|at| u32::from_be_bytes(drawn.png[at..at + 4].try_into().unwrap()));
            assert_eq!(size, [SIZE.0, SIZE.1]);
        }
    }

    #[test]
    fn nothing_to_draw_is_said() {
        for series in [vec![], vec![("reward".to_owned(), vec![(1.0, f64::NAN)])]] {
            let error = draw(&Curve { title: "Mean reward".into(), series, ..Curve::default() }).unwrap_err();
            assert!(error.is_input() && error.to_string().contains("Mean reward"), "{error}");
        }
    }

    #[test]
    fn a_logarithmic_axis_names_powers_and_leaves_out_what_has_none() {
        let series = vec![("gap".to_owned(), vec![(0.0, 1.0), (1.0, 1e-4), (2.0, 1e-8), (3.0, 0.0), (4.0, -1.0)])];
        let curve = Curve { title: "Gap".into(), series, ..Curve::default() };
        let svg = draw_logarithmic(&curve).unwrap().svg;
        assert!(svg.contains("1e-4") && svg.contains("1e-8") && !svg.contains("smoothed"), "{svg}");
        let nothing = Curve { series: vec![("gap".into(), vec![(0.0, -1.0)])], ..curve };
        assert!(draw_logarithmic(&nothing).unwrap_err().is_input());
    }

    #[test]
    fn axis_numbers_are_short() {
        assert_eq!(
            [0.0, -0.0, 10.0, 0.25, -1.5, 1e-5, 2.5e8].map(number),
            ["0", "0", "10", "0.25", "-1.5", "1.0e-5", "2.5e8"]
        );
    }
}
