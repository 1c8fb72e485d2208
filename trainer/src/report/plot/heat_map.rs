//! Heat maps: one number per layer and module, its colour from white (zero) to blue (the largest), printed in its cell
//! if it fits.
//!
//! Layers run from left to right and modules from top to bottom, in the order of the forward pass.

use super::{COLOURS, Drawn, INK, Painting, both, font, load_font, number, unpainted};
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A heat map: a table of numbers with labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeatMap {
    /// Title above the map.
    pub title: String,
    /// Label of the columns, below the map.
    pub x_label: String,
    /// Names of the columns, left to right.
    pub columns: Vec<String>,
    /// Rows, top to bottom: a name, and one number per column; `None` leaves the cell empty.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

impl HeatMap {
    /// Returns the map of one number per linear layer; layers are named as on the hub, such as
    /// `model.layers.3.self_attn.q_proj`.
    pub fn of_layers(title: &str, numbers: &[(&str, i64)]) -> Self {
        let mut columns: Vec<String> = Vec::new();
        let mut rows: Vec<(String, Vec<Option<f64>>)> = Vec::new();
        for (name, number) in numbers {
            let module = name.rsplit('.').next().unwrap_or(name);
            let layer = name.split('.').find(|part| part.parse::<u32>().is_ok()).unwrap_or("");
            let column = columns.iter().position(|known| known == layer).unwrap_or_else(|| {
                columns.push(layer.to_owned());
                columns.len() - 1
            });
            let row = rows.iter().position(|(known, _)| known == module).unwrap_or_else(|| {
                rows.push((module.to_owned(), Vec::new()));
                rows.len() - 1
            });
            let cells = &mut rows[row].1;
            cells.resize(cells.len().max(column + 1), None);
            cells[column] = Some(*number as f64);
        }
        for (_, cells) in &mut rows {
            cells.resize(columns.len(), None);
        }
        Self { title: title.to_owned(), x_label: "layer".to_owned(), columns, rows }
    }
}

/// Draws a heat map.
///
/// # Errors
/// If it has no cell, or a row of another length than the number of columns.
pub fn draw_heat_map(map: &HeatMap) -> Result<Drawn> {
    load_font()?;
    if map.columns.is_empty() || map.rows.is_empty() {
        return Err(Error::input(format!("`{}` cannot be drawn: it has no cell", map.title)));
    }
    if let Some((name, _)) = map.rows.iter().find(|(_, cells)| cells.len() != map.columns.len()) {
        return Err(Error::input(format!("`{}` cannot be drawn: row `{name}` has another length", map.title)));
    }
    both(map)
}

/// Space around the cells, in pixels: left, top, right, bottom.
const MARGIN: (i32, i32, i32, i32) = (110, 60, 100, 60);

impl Painting for HeatMap {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let scale = scale as i32;
        let (width, height) = (area.dim_in_pixel().0 as i32, area.dim_in_pixel().1 as i32);
        let (left, top) = (MARGIN.0 * scale, MARGIN.1 * scale);
        let (right, bottom) = (width - MARGIN.2 * scale, height - MARGIN.3 * scale);
        let (columns, rows) = (self.columns.len() as i32, self.rows.len() as i32);
        let x = |column: i32| left + (right - left) * column / columns;
        let y = |row: i32| top + (bottom - top) * row / rows;
        let most = self.rows.iter().flat_map(|(_, cells)| cells.iter().flatten()).copied().fold(0.0, f64::max);
        let text = |words: &str, at: (i32, i32), size: i32, colour: &RGBColor, pos: Pos| {
            let style = font(size, scale).color(colour).pos(pos);
            area.draw(&Text::new(words.to_owned(), at, style)).map_err(unpainted)
        };
        let (middle, before) = (Pos::new(HPos::Center, VPos::Center), Pos::new(HPos::Right, VPos::Center));

        area.fill(&WHITE).map_err(unpainted)?;
        text(&self.title, (width / 2, 26 * scale), 20, &INK, middle)?;
        text(&self.x_label, (left.midpoint(right), height - 20 * scale), 15, &INK, middle)?;
        let cell_width = (right - left) / columns / scale;
        for (row, (name, cells)) in (0..).zip(&self.rows) {
            text(name, (left - 8 * scale, y(row).midpoint(y(row + 1))), 13, &INK, before)?;
            for (column, value) in (0..).zip(cells) {
                let Some(value) = value else { continue };
                let corners = [(x(column), y(row)), (x(column + 1), y(row + 1))];
                let share = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
                area.draw(&Rectangle::new(corners, shade(share).filled())).map_err(unpainted)?;
                area.draw(&Rectangle::new(corners, INK.mix(0.25).stroke_width(scale as u32))).map_err(unpainted)?;
                let label = number(*value);
                let size = 12.min(cell_width * 3 / 2 / (label.len() as i32).max(1));
                if size >= 7 {
                    let at = (x(column).midpoint(x(column + 1)), y(row).midpoint(y(row + 1)));
                    text(&label, at, size, if share > 0.55 { &WHITE } else { &INK }, middle)?;
                }
            }
        }
        // Every column is labelled if the names fit, else every second or third.
        let every = 24 / cell_width.max(1) + 1;
        for (column, name) in (0..).zip(&self.columns).step_by(every as usize) {
            text(name, (x(column).midpoint(x(column + 1)), bottom + 14 * scale), 12, &INK, middle)?;
        }
        paint_key(area, (right + 24 * scale, top, bottom), most, scale)?;
        area.present().map_err(unpainted)
    }
}

/// Paints the colour scale with its values, as a bar that begins at `x` and extends from top to bottom.
fn paint_key<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    (x, top, bottom): (i32, i32, i32),
    most: f64,
    scale: i32,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    const SHADES: i32 = 64;
    let y = |step: i32| bottom - (bottom - top) * step / SHADES;
    for step in 0..SHADES {
        let corners = [(x, y(step + 1)), (x + 16 * scale, y(step))];
        let colour = shade(f64::from(step) / f64::from(SHADES - 1));
        area.draw(&Rectangle::new(corners, colour.filled())).map_err(unpainted)?;
    }
    let border = INK.mix(0.25).stroke_width(scale as u32);
    area.draw(&Rectangle::new([(x, top), (x + 16 * scale, bottom)], border)).map_err(unpainted)?;
    for (value, at) in [(0.0, bottom), (most / 2.0, top.midpoint(bottom)), (most, top)] {
        let style = font(12, scale).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(number(value), (x + 22 * scale, at), style)).map_err(unpainted)?;
    }
    Ok(())
}

/// Returns the colour of a share: white at 0, the first of the curves' colours at 1.
fn shade(share: f64) -> RGBColor {
    let RGBColor(red, green, blue) = COLOURS[0];
    let mix = |channel: u8| (255.0 + (f64::from(channel) - 255.0) * share).round() as u8;
    RGBColor(mix(red), mix(green), mix(blue))
}

#[cfg(test)]
mod tests {
    use super::super::SIZE;
    use super::*;

    fn map(layers: usize) -> HeatMap {
        let modules = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"];
        let name = |cell: usize| format!("model.layers.{}.{}", cell / 3, modules[cell % 3]);
        let names: Vec<String> = (0..layers * 3).map(name).collect();
        let cells: Vec<(&str, i64)> = names.iter().map(String::as_str).zip(0..).collect();
        HeatMap::of_layers("Open ranks", &cells)
    }

    #[test]
    fn layers_become_columns_and_modules_rows() {
        let map = map(2);
        assert_eq!(map.columns, ["0", "1"]);
        assert_eq!(map.rows[0], ("q_proj".into(), vec![Some(0.0), Some(3.0)]));
        assert_eq!(map.rows[2], ("up_proj".into(), vec![Some(2.0), Some(5.0)]));
        // A module that some layer lacks leaves its cell empty.
        let part =
            HeatMap::of_layers("x", &[("model.layers.0.a", 1), ("model.layers.1.a", 2), ("model.layers.1.b", 3)]);
        assert_eq!(part.rows[1], ("b".into(), vec![None, Some(3.0)]));
    }

    #[test]
    fn the_svg_names_modules_and_holds_the_numbers() {
        let svg = draw_heat_map(&map(4)).unwrap().svg;
        for text in ["Open ranks", "q_proj", "v_proj", "up_proj", "layer", "11"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn the_png_shows_the_largest_cell_in_full_colour_and_zero_in_white() {
        let png = draw_heat_map(&map(4)).unwrap().png;
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        let at = |x: usize, y: usize| pixels[(y * SIZE.0 as usize + x) * 3..][..3].to_vec();
        // Inside the first and the last cell, away from borders and digits.
        assert_eq!(at(120, 70), [255, 255, 255]);
        assert_eq!(at(790, 430), [0, 114, 178]);
    }

    #[test]
    fn many_layers_all_zeros_and_nothing_at_all() {
        assert!(draw_heat_map(&map(80)).is_ok());
        let zeros = HeatMap::of_layers("x", &[("model.layers.0.a", 0), ("model.layers.1.a", 0)]);
        assert!(draw_heat_map(&zeros).is_ok());
        assert!(draw_heat_map(&HeatMap::default()).unwrap_err().is_input());
        let ragged = HeatMap { columns: vec!["0".into()], rows: vec![("a".into(), vec![])], ..HeatMap::default() };
        assert!(draw_heat_map(&ragged).unwrap_err().to_string().contains("`a`"));
    }
}
