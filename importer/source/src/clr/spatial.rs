//! geometry and geography: points, figures made of them, and shapes made of figures or of other shapes, each list after the other.
//!
//! A figure's points reach to where the next figure's begin, a shape's figures to where the next shape's begin, and a shape names its parent. Version 1 knows straight lines
//! alone; version 2 adds arcs, and for curves of both kinds a list of segments. A geography gives the latitude first; text has it second. NaN stands for a Z
//! or M that a point of a value with others does not have.

use std::fmt::Write;

/// How deep collections may be nested. SQL Server itself sets no limit, but nobody nests so deep, and recursion must end.
const DEEPEST: usize = 32;

const HAS_Z: u8 = 0x01;
const HAS_M: u8 = 0x02;
const SINGLE_POINT: u8 = 0x08;
const SINGLE_LINE: u8 = 0x10;

/// As well-known text with the spatial reference before it; `None` if the bytes are no spatial value. The null of the CLR type is not told apart: a column holds NULL instead.
pub fn text(bytes: &[u8], geography: bool) -> Option<String> {
    let mut reader = Reader { bytes };
    let srid = reader.i32()?;
    let value = Spatial::read(&mut reader, geography)?;
    let mut out = format!("SRID={srid};");
    value.shape(0, 0, &mut out)?;
    Some(out)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn i32(&mut self) -> Option<i32> {
        self.take(4)?.try_into().ok().map(i32::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.take(8)?.try_into().ok().map(f64::from_le_bytes)
    }

    /// A number of things of `size` bytes each, all of which must be there: nothing is reserved on a promise.
    fn count(&mut self, size: usize) -> Option<usize> {
        let count = usize::try_from(self.i32()?).ok()?;
        (count.checked_mul(size)? <= self.bytes.len()).then_some(count)
    }
}

#[derive(Debug, Clone, Copy)]
struct Figure {
    kind: u8,
    first_point: usize,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    parent: i32,
    /// Negative: the shape is empty.
    first_figure: i32,
    kind: u8,
}

struct Spatial {
    /// X and Y, in the order of text.
    points: Vec<(f64, f64)>,
    z: Vec<f64>,
    m: Vec<f64>,
    figures: Vec<Figure>,
    shapes: Vec<Shape>,
    /// The segments of curves of both kinds, those of all figures one after the other.
    segments: Vec<u8>,
    version: u8,
}

impl Spatial {
    fn read(reader: &mut Reader<'_>, geography: bool) -> Option<Self> {
        let version = reader.u8().filter(|version| matches!(version, 1 | 2))?;
        let properties = reader.u8()?;
        let single = match properties & (SINGLE_POINT | SINGLE_LINE) {
            SINGLE_POINT => Some(1),
            SINGLE_LINE => Some(2),
            0 => None,
            _ => return None,
        };
        let count = match single {
            Some(count) => count,
            None => reader.count(16)?,
        };
        let point = |reader: &mut Reader<'_>| {
            let (first, second) = (reader.f64()?, reader.f64()?);
            Some(if geography { (second, first) } else { (first, second) })
        };
        let points = (0..count).map(|_| point(reader)).collect::<Option<Vec<_>>>()?;
        let mut extra = |flag| {
            let count = if properties & flag != 0 { points.len() } else { 0 };
            (0..count).map(|_| reader.f64()).collect::<Option<Vec<_>>>()
        };
        let (z, m) = (extra(HAS_Z)?, extra(HAS_M)?);
        let mut value = Self { points, z, m, figures: Vec::new(), shapes: Vec::new(), segments: Vec::new(), version };
        match single {
            Some(count) => {
                // A point or a line of two points: its one figure and its one shape go without saying.
                value.figures.push(Figure { kind: 1, first_point: 0 });
                value.shapes.push(Shape { parent: -1, first_figure: 0, kind: if count == 1 { 1 } else { 2 } });
            }
            None => value.read_structure(reader)?,
        }
        reader.bytes.is_empty().then_some(value)
    }

    fn read_structure(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        for _ in 0..reader.count(5)? {
            let (kind, first) = (reader.u8()?, usize::try_from(reader.i32()?).ok()?);
            let after_last = self.figures.last().is_none_or(|last| last.first_point <= first);
            (after_last && first <= self.points.len()).then_some(())?;
            self.figures.push(Figure { kind, first_point: first });
        }
        for index in 0..reader.count(9)? {
            let shape = Shape { parent: reader.i32()?, first_figure: reader.i32()?, kind: reader.u8()? };
            // Parents stand before their children: there is no way round in a circle.
            let known = if index == 0 { shape.parent == -1 } else { usize::try_from(shape.parent).ok()? < index };
            let begins = shape.first_figure < 0 || usize::try_from(shape.first_figure).ok()? <= self.figures.len();
            (known && begins).then_some(())?;
            self.shapes.push(shape);
        }
        if self.version == 2 && !reader.bytes.is_empty() {
            let count = reader.count(1)?;
            self.segments = reader.take(count)?.to_vec();
        }
        (!self.shapes.is_empty()).then_some(())
    }

    /// The figures of a shape that has no parts of its own kind of shape.
    fn figures_of(&self, index: usize) -> Option<std::ops::Range<usize>> {
        let Ok(first) = usize::try_from(self.shapes.get(index)?.first_figure) else { return Some(0..0) };
        let next = self.shapes[index + 1..].iter().find_map(|shape| usize::try_from(shape.first_figure).ok());
        let end = next.unwrap_or(self.figures.len());
        (first <= end).then_some(first..end)
    }

    fn points_of(&self, figure: usize) -> Option<std::ops::Range<usize>> {
        let first = self.figures.get(figure)?.first_point;
        Some(first..self.figures.get(figure + 1).map_or(self.points.len(), |next| next.first_point))
    }

    fn children_of(&self, index: usize) -> impl Iterator<Item = usize> {
        let parent = i32::try_from(index).unwrap_or(i32::MAX);
        (index + 1..self.shapes.len()).filter(move |child| self.shapes[*child].parent == parent)
    }

    fn shape(&self, index: usize, depth: usize, out: &mut String) -> Option<()> {
        const NAMES: [&str; 12] = [
            "",
            "POINT",
            "LINESTRING",
            "POLYGON",
            "MULTIPOINT",
            "MULTILINESTRING",
            "MULTIPOLYGON",
            "GEOMETRYCOLLECTION",
            "CIRCULARSTRING",
            "COMPOUNDCURVE",
            "CURVEPOLYGON",
            "FULLGLOBE",
        ];
        let kind = self.shapes.get(index)?.kind;
        let name = NAMES.get(usize::from(kind)).filter(|name| !name.is_empty())?;
        (depth < DEEPEST).then_some(())?;
        out.push_str(name);
        if kind == 11 {
            return Some(());
        }
        out.push(' ');
        self.contents(index, kind, depth, out)
    }

    /// What stands after a shape's name.
    fn contents(&self, index: usize, kind: u8, depth: usize, out: &mut String) -> Option<()> {
        let empty = match kind {
            4..=7 => self.children_of(index).next().is_none(),
            _ => self.figures_of(index)?.is_empty(),
        };
        if empty {
            out.push_str("EMPTY");
            return Some(());
        }
        let figures = self.figures_of(index)?;
        match kind {
            1 | 2 | 8 => self.points(self.points_of(figures.start)?, out),
            3 => list(figures, out, |figure, out| self.points(self.points_of(figure)?, out)),
            // The parts of a collection of one kind go without their names.
            4..=6 => list(self.children_of(index), out, |child, out| self.contents(child, kind - 3, depth + 1, out)),
            7 => list(self.children_of(index), out, |child, out| self.shape(child, depth + 1, out)),
            9 => self.compound(figures.start, out),
            10 => list(figures, out, |figure, out| self.ring(figure, out)),
            _ => None,
        }
    }

    /// A ring of a polygon that may be curved.
    fn ring(&self, figure: usize, out: &mut String) -> Option<()> {
        match self.figures.get(figure)?.kind {
            2 => {
                out.push_str("CIRCULARSTRING ");
                self.points(self.points_of(figure)?, out)
            }
            3 => {
                out.push_str("COMPOUNDCURVE ");
                self.compound(figure, out)
            }
            _ => self.points(self.points_of(figure)?, out),
        }
    }

    /// A figure of lines and arcs: pieces, each of which begins where the one before ends.
    fn compound(&self, figure: usize, out: &mut String) -> Option<()> {
        let points = self.points_of(figure)?;
        let mut segments = self.segments.get(self.segments_before(figure)?..)?.iter();
        let mut at = points.start;
        let mut pieces: Vec<(bool, std::ops::Range<usize>)> = Vec::new();
        while at + 1 < points.end {
            let segment = *segments.next()?;
            let arc = matches!(segment, 1 | 3);
            let next = at + if arc { 2 } else { 1 };
            match pieces.last_mut().filter(|_| matches!(segment, 0 | 1)) {
                Some((kind, piece)) if *kind == arc => piece.end = next + 1,
                _ => pieces.push((arc, at..next + 1)),
            }
            at = next;
        }
        (at + 1 == points.end).then_some(())?;
        list(pieces.into_iter(), out, |(arc, piece), out| {
            if arc {
                out.push_str("CIRCULARSTRING ");
            }
            self.points(piece, out)
        })
    }

    /// How many segments the compound figures before this one take.
    fn segments_before(&self, figure: usize) -> Option<usize> {
        let mut taken = 0;
        for before in (0..figure).filter(|before| self.figures[*before].kind == 3) {
            let points = self.points_of(before)?;
            let mut left = points.len().saturating_sub(1);
            while left > 0 {
                left = left.checked_sub(if matches!(self.segments.get(taken)?, 1 | 3) { 2 } else { 1 })?;
                taken += 1;
            }
        }
        Some(taken)
    }

    fn points(&self, range: std::ops::Range<usize>, out: &mut String) -> Option<()> {
        (!range.is_empty() && range.end <= self.points.len()).then_some(())?;
        list(range, out, |index, out| {
            let (x, y) = self.points.get(index)?;
            let _ = write!(out, "{x} {y}");
            // With an M, a missing Z keeps its place.
            let z = self.z.get(index).copied().or(self.m.get(index).map(|_| f64::NAN));
            for value in [z, self.m.get(index).copied()].into_iter().flatten() {
                let _ = if value.is_nan() { write!(out, " NULL") } else { write!(out, " {value}") };
            }
            Some(())
        })
    }
}

fn list<T>(items: impl Iterator<Item = T>, out: &mut String, mut write: impl FnMut(T, &mut String) -> Option<()>) -> Option<()> {
    out.push('(');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(item, out)?;
    }
    out.push(')');
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: String = hex.chars().filter(|c| !c.is_whitespace()).collect();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn geometry(hex: &str) -> Option<String> {
        text(&bytes(hex), false)
    }

    /// Puts a value together from its lists.
    fn build(version: u8, points: &[(f64, f64)], figures: &[(u8, i32)], shapes: &[(i32, i32, u8)], segments: &[u8]) -> Vec<u8> {
        let count = |count: usize| i32::try_from(count).unwrap().to_le_bytes();
        let mut out = vec![0, 0, 0, 0, version, 0x04];
        out.extend(count(points.len()));
        out.extend(points.iter().flat_map(|(x, y)| [x.to_le_bytes(), y.to_le_bytes()]).flatten());
        out.extend(count(figures.len()));
        for (kind, first) in figures {
            out.push(*kind);
            out.extend(first.to_le_bytes());
        }
        out.extend(count(shapes.len()));
        for (parent, first, kind) in shapes {
            out.extend(parent.to_le_bytes());
            out.extend(first.to_le_bytes());
            out.push(*kind);
        }
        if !segments.is_empty() {
            out.extend(count(segments.len()));
            out.extend(segments);
        }
        out
    }

    #[test]
    fn points_and_lines_are_short() {
        // geometry::STGeomFromText('POINT (5 10)', 0)
        assert_eq!(geometry("00000000 01 0C 0000000000001440 0000000000002440").unwrap(), "SRID=0;POINT (5 10)");
        // geography::Point(47.65100, -122.34900, 4326): the latitude comes first.
        let seattle = "E6100000 01 0C 17D9CEF753D34740 7593180456965EC0";
        assert_eq!(text(&bytes(seattle), true).unwrap(), "SRID=4326;POINT (-122.349 47.651)");
        // 'LINESTRING (0 0, 1 2)'
        let line = "00000000 01 14 0000000000000000 0000000000000000 000000000000F03F 0000000000000040";
        assert_eq!(geometry(line).unwrap(), "SRID=0;LINESTRING (0 0, 1 2)");
        // 'POINT (1 2 3 4)' has Z and M.
        let deep = "00000000 01 0F 000000000000F03F 0000000000000040 0000000000000840 0000000000001040";
        assert_eq!(geometry(deep).unwrap(), "SRID=0;POINT (1 2 3 4)");
        let measured = "00000000 01 0E 000000000000F03F 0000000000000040 0000000000001040";
        assert_eq!(geometry(measured).unwrap(), "SRID=0;POINT (1 2 NULL 4)");
    }

    #[test]
    fn shapes_are_put_together_from_figures() {
        let square = [(0.0, 0.0), (3.0, 0.0), (3.0, 3.0), (0.0, 0.0)];
        let hole = [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0), (1.0, 1.0)];
        let points: Vec<(f64, f64)> = square.iter().chain(&hole).copied().collect();
        let polygon = build(1, &points, &[(2, 0), (0, 4)], &[(-1, 0, 3)], &[]);
        assert_eq!(text(&polygon, false).unwrap(), "SRID=0;POLYGON ((0 0, 3 0, 3 3, 0 0), (1 1, 2 1, 2 2, 1 1))");
        let multi = build(1, &points, &[(2, 0), (2, 4)], &[(-1, 0, 6), (0, 0, 3), (0, 1, 3)], &[]);
        assert_eq!(text(&multi, false).unwrap(), "SRID=0;MULTIPOLYGON (((0 0, 3 0, 3 3, 0 0)), ((1 1, 2 1, 2 2, 1 1)))");
        let collection = build(
            1,
            &[(4.0, 6.0), (4.0, 6.0), (7.0, 10.0), (1.5, -2.0)],
            &[(1, 0), (1, 1), (1, 3)],
            &[(-1, 0, 7), (0, 0, 1), (0, 1, 2), (0, 2, 4), (3, 2, 1), (0, -1, 3)],
            &[],
        );
        assert_eq!(
            text(&collection, false).unwrap(),
            "SRID=0;GEOMETRYCOLLECTION (POINT (4 6), LINESTRING (4 6, 7 10), MULTIPOINT ((1.5 -2)), POLYGON EMPTY)"
        );
        assert_eq!(text(&build(1, &[], &[], &[(-1, -1, 1)], &[]), false).unwrap(), "SRID=0;POINT EMPTY");
        assert_eq!(text(&build(1, &[], &[], &[(-1, -1, 7)], &[]), false).unwrap(), "SRID=0;GEOMETRYCOLLECTION EMPTY");
        assert_eq!(text(&build(2, &[], &[], &[(-1, -1, 11)], &[]), true).unwrap(), "SRID=0;FULLGLOBE");
    }

    #[test]
    fn curves_are_told_from_lines() {
        let points = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0)];
        let circular = build(2, &points[..3], &[(2, 0)], &[(-1, 0, 8)], &[]);
        assert_eq!(text(&circular, false).unwrap(), "SRID=0;CIRCULARSTRING (0 0, 1 1, 2 0)");
        let compound = build(2, &points, &[(3, 0)], &[(-1, 0, 9)], &[3, 2, 0]);
        assert_eq!(text(&compound, false).unwrap(), "SRID=0;COMPOUNDCURVE (CIRCULARSTRING (0 0, 1 1, 2 0), (2 0, 3 0, 4 0))");
        let ring = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (1.0, -1.0), (0.0, 0.0)];
        let curved = build(2, &ring, &[(2, 0)], &[(-1, 0, 10)], &[]);
        assert_eq!(text(&curved, false).unwrap(), "SRID=0;CURVEPOLYGON (CIRCULARSTRING (0 0, 1 1, 2 0, 1 -1, 0 0))");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        assert_eq!(geometry(""), None);
        assert_eq!(geometry("00000000 01 0C 0000000000001440"), None, "cut off");
        assert_eq!(geometry("00000000 03 0C 0000000000001440 0000000000002440"), None, "an unknown version");
        assert_eq!(geometry("00000000 01 04 FFFFFF7F"), None, "more points than there are bytes");
        let deep: Vec<(i32, i32, u8)> = (-1..100).map(|parent| (parent, 0, 7)).collect();
        assert_eq!(text(&build(1, &[], &[], &deep, &[]), false), None, "nested too deep");
        assert_eq!(text(&build(1, &[], &[], &[(-1, 0, 7), (1, 0, 7)], &[]), false), None, "its own parent");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_none(bytes in prop::collection::vec(any::<u8>(), 0..120), geography: bool) {
            let _ = text(&bytes, geography);
        }

        /// Bytes that get past the header, with small numbers where counts and offsets stand.
        #[test]
        fn any_structure_is_a_value_or_none(
            version in 1u8..=2, points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..6), figures in prop::collection::vec((0u8..5, -1i32..8), 0..5),
            shapes in prop::collection::vec((-1i32..5, -1i32..6, 0u8..13), 0..6), segments in prop::collection::vec(0u8..5, 0..6),
        ) {
            let _ = text(&build(version, &points, &figures, &shapes, &segments), false);
        }
    }
}
