//! Line plots as SVG.

use anyhow::anyhow;
use plotters::prelude::*;

const SIZE: (u32, u32) = (640, 360);
/// Colours that most people can distinguish, also next to each other.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(148, 103, 189),
];

pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Plot {
    pub title: String,
    pub x_label: &'static str,
    pub y_label: &'static str,
    /// How numbers on the x axis are written.
    pub x_text: fn(f64) -> String,
    /// How many there are at most.
    pub x_labels: usize,
    /// The y axis has powers of ten instead of equal steps.
    pub log: bool,
    pub lines: Vec<Line>,
}

impl Plot {
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(&area)?;
        area.present()?;
        drop(area);
        Ok(svg)
    }

    /// Several beside each other, as one picture.
    pub fn svg_of(plots: &[Plot]) -> anyhow::Result<String> {
        let mut svg = String::new();
        let size = (SIZE.0 * plots.len() as u32, SIZE.1);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (plot, part) in plots.iter().zip(area.split_evenly((1, plots.len()))) {
            plot.draw(&part)?;
        }
        area.present()?;
        drop(area);
        Ok(svg)
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> anyhow::Result<()> {
        // The backend's errors cannot leave this thread.
        self.try_draw(area).map_err(|error| anyhow!("cannot draw '{}': {error}", self.title))
    }

    fn try_draw<'b>(
        &self,
        area: &DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>> {
        let scale = |y: f64| if self.log { y.max(0.1).log10() } else { y };
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let (left, right) = span(all().map(|&(x, _)| x));
        let (low, high) = span(all().map(|&(_, y)| scale(y)));
        let (bottom, top) =
            if self.log { (low.floor(), high.ceil().max(low.floor() + 1.0)) } else { (0.0, high * 1.25) };
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(left..right, bottom..top)?;
        let x_text = |x: &f64| (self.x_text)(*x);
        let y_text = |y: &f64| short(if self.log { 10f64.powf(*y) } else { *y });
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).bold_line_style(RGBColor(225, 225, 225)).axis_style(RGBColor(120, 120, 120));
        mesh.label_style(("sans-serif", 12)).x_desc(self.x_label).y_desc(self.y_label);
        mesh.x_labels(self.x_labels).x_label_formatter(&x_text).y_label_formatter(&y_text);
        mesh.y_labels(if self.log { (top - bottom) as usize + 1 } else { 6 }).draw()?;
        for (n, line) in self.lines.iter().enumerate() {
            let style = COLOURS[n % COLOURS.len()].stroke_width(2);
            let points = line.points.iter().map(|&(x, y)| (x, scale(y)));
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style);
            chart.draw_series(LineSeries::new(points, style))?.label(&line.name).legend(legend);
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::LowerRight).margin(8).label_font(("sans-serif", 12));
        labels.background_style(WHITE.mix(0.8)).draw()
    }
}

/// The range from the smallest value to the largest, and never empty.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    (low, if high > low { high } else { low + 1.0 })
}

/// A number in few characters.
fn short(number: f64) -> String {
    let (number, unit) = match number.abs() {
        size if size >= 1e6 => (number / 1e6, "M"),
        size if size >= 1e3 => (number / 1e3, "k"),
        _ => (number, ""),
    };
    let text = format!("{number:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}
