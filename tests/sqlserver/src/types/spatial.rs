//! geometry and geography as SQL Server keeps them (MS-SSCLRT), for points, lines and polygons in two dimensions; other shapes are refused.
//!
//! SRID, version 1, flags, points, figures, shapes; a single point and a line of two points are their coordinates alone. A geography keeps the latitude
//! first, while its text has the longitude first.

const VALID: u8 = 0x04;
const SINGLE_POINT: u8 = 0x08;
const SINGLE_LINE: u8 = 0x10;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spatial {
    pub(crate) srid: i32,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// None: empty.
    Point(Option<(f64, f64)>),
    Line(Vec<(f64, f64)>),
    /// The outer ring, then the holes.
    Polygon(Vec<Vec<(f64, f64)>>),
}

fn pair(text: &str) -> Option<(f64, f64)> {
    let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<f64>().ok());
    let point = (numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(point)
}

fn list(text: &str) -> Option<Vec<(f64, f64)>> {
    text.split(',').map(pair).collect()
}

fn inside(text: &str) -> Option<&str> {
    text.trim().strip_prefix('(')?.strip_suffix(')')
}

impl Spatial {
    /// From well-known text.
    pub(crate) fn parse(text: &str, srid: i32) -> Option<Spatial> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (kind, rest) = (text[..end].to_ascii_uppercase(), text[end..].trim());
        let empty = rest.eq_ignore_ascii_case("EMPTY");
        let shape = match kind.as_str() {
            "POINT" if empty => Shape::Point(None),
            "POINT" => Shape::Point(Some(pair(inside(rest)?)?)),
            "LINESTRING" if empty => Shape::Line(Vec::new()),
            "LINESTRING" => Shape::Line(list(inside(rest)?).filter(|l| l.len() > 1)?),
            "POLYGON" if empty => Shape::Polygon(Vec::new()),
            "POLYGON" => {
                let rings =
                    inside(rest)?.split_inclusive(')').map(|ring| inside(ring.trim().trim_start_matches(',')).and_then(list));
                let rings: Vec<_> = rings.collect::<Option<_>>()?;
                Shape::Polygon(Some(rings).filter(|r| r.iter().all(|ring| ring.len() > 3 && ring.first() == ring.last()))?)
            }
            _ => return None,
        };
        Some(Spatial { srid, shape })
    }

    pub(crate) fn point(x: f64, y: f64, srid: i32) -> Spatial {
        Spatial { srid, shape: Shape::Point(Some((x, y))) }
    }

    fn figures(&self) -> Vec<Vec<(f64, f64)>> {
        match &self.shape {
            Shape::Point(p) => p.iter().map(|p| vec![*p]).collect(),
            Shape::Line(l) => Some(l.clone()).filter(|l| !l.is_empty()).into_iter().collect(),
            Shape::Polygon(rings) => rings.clone(),
        }
    }

    pub(crate) fn to_bytes(&self, geography: bool) -> Vec<u8> {
        let figures = self.figures();
        let mut out = self.srid.to_le_bytes().to_vec();
        out.push(1);
        let single = match &self.shape {
            Shape::Point(Some(_)) => SINGLE_POINT,
            Shape::Line(l) if l.len() == 2 => SINGLE_LINE,
            _ => 0,
        };
        out.push(VALID | single);
        let points: Vec<(f64, f64)> = figures.iter().flatten().copied().collect();
        if single == 0 {
            out.extend((points.len() as u32).to_le_bytes());
        }
        for (x, y) in &points {
            let (first, second) = if geography { (y, x) } else { (x, y) };
            out.extend(first.to_le_bytes());
            out.extend(second.to_le_bytes());
        }
        if single != 0 {
            return out;
        }
        out.extend((figures.len() as u32).to_le_bytes());
        let mut at = 0u32;
        for (number, figure) in figures.iter().enumerate() {
            // 1: a stroke, 2: an outer ring, 0: a hole.
            out.push(match (&self.shape, number) {
                (Shape::Polygon(_), 0) => 2,
                (Shape::Polygon(_), _) => 0,
                _ => 1,
            });
            out.extend(at.to_le_bytes());
            at += figure.len() as u32;
        }
        out.extend(1u32.to_le_bytes());
        out.extend((-1i32).to_le_bytes());
        out.extend(if figures.is_empty() { -1i32 } else { 0 }.to_le_bytes());
        out.push(self.number() as u8);
        out
    }

    /// The shape's number, in these bytes as in well-known binary.
    fn number(&self) -> u32 {
        match self.shape {
            Shape::Point(_) => 1,
            Shape::Line(_) => 2,
            Shape::Polygon(_) => 3,
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8], geography: bool) -> Option<Spatial> {
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let srid = i32::from_le_bytes(take(4)?.try_into().ok()?);
        let [1, flags] = *take(2)? else { return None };
        if flags & !(VALID | SINGLE_POINT | SINGLE_LINE) != 0 {
            return None;
        }
        let single = flags & (SINGLE_POINT | SINGLE_LINE);
        let count = match single {
            SINGLE_POINT => 1,
            SINGLE_LINE => 2,
            _ => u32::from_le_bytes(take(4)?.try_into().ok()?) as usize,
        };
        let mut points = Vec::new();
        for _ in 0..count {
            let first = f64::from_le_bytes(take(8)?.try_into().ok()?);
            let second = f64::from_le_bytes(take(8)?.try_into().ok()?);
            points.push(if geography { (second, first) } else { (first, second) });
        }
        if single == SINGLE_POINT {
            return Some(Spatial { srid, shape: Shape::Point(points.pop()) });
        }
        if single == SINGLE_LINE {
            return Some(Spatial { srid, shape: Shape::Line(points) });
        }
        let figures = u32::from_le_bytes(take(4)?.try_into().ok()?);
        let mut starts = Vec::new();
        for _ in 0..figures {
            take(1)?;
            starts.push(u32::from_le_bytes(take(4)?.try_into().ok()?) as usize);
        }
        if u32::from_le_bytes(take(4)?.try_into().ok()?) != 1 {
            return None;
        }
        take(8)?;
        let ends = starts.iter().skip(1).copied().chain([points.len()]);
        let rings = starts.iter().zip(ends).map(|(from, to)| points.get(*from..to).map(<[_]>::to_vec));
        let rings: Vec<_> = rings.collect::<Option<_>>()?;
        let shape = match take(1)?[0] {
            1 => Shape::Point(points.pop()),
            2 => Shape::Line(points),
            3 => Shape::Polygon(rings),
            _ => return None,
        };
        Some(Spatial { srid, shape })
    }

    pub(crate) fn text(&self) -> String {
        let list = |points: &[(f64, f64)]| points.iter().map(|(x, y)| format!("{x} {y}")).collect::<Vec<_>>().join(", ");
        match &self.shape {
            Shape::Point(Some((x, y))) => format!("POINT ({x} {y})"),
            Shape::Point(None) => "POINT EMPTY".into(),
            Shape::Line(l) if l.is_empty() => "LINESTRING EMPTY".into(),
            Shape::Line(l) => format!("LINESTRING ({})", list(l)),
            Shape::Polygon(rings) if rings.is_empty() => "POLYGON EMPTY".into(),
            Shape::Polygon(rings) => {
                format!("POLYGON ({})", rings.iter().map(|r| format!("({})", list(r))).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Well-known binary, little-endian. An empty point is a multipoint of none, as SQL Server writes it.
    pub(crate) fn binary(&self) -> Vec<u8> {
        let mut out = vec![1];
        let empty_point = self.shape == Shape::Point(None);
        out.extend(if empty_point { 4 } else { self.number() }.to_le_bytes());
        let figures = self.figures();
        let points = |out: &mut Vec<u8>, list: &[(f64, f64)]| {
            list.iter().for_each(|(x, y)| out.extend([x.to_le_bytes(), y.to_le_bytes()].concat()))
        };
        match &self.shape {
            Shape::Point(Some(p)) => points(&mut out, &[*p]),
            Shape::Point(None) => out.extend(0u32.to_le_bytes()),
            Shape::Line(l) => {
                out.extend((l.len() as u32).to_le_bytes());
                points(&mut out, l);
            }
            Shape::Polygon(_) => {
                out.extend((figures.len() as u32).to_le_bytes());
                for ring in &figures {
                    out.extend((ring.len() as u32).to_le_bytes());
                    points(&mut out, ring);
                }
            }
        }
        out
    }

    /// Coordinates of a point: x and y, which are longitude and latitude in a geography.
    pub(crate) fn coordinates(&self) -> Option<(f64, f64)> {
        match self.shape {
            Shape::Point(p) => p,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_are_written_as_sql_server_writes_them() {
        let point = Spatial::parse("POINT (5 10)", 0).unwrap();
        assert_eq!(hex::encode(point.to_bytes(false)), "00000000010c00000000000014400000000000002440");
        // geography::Point(47.651, -122.349, 4326): the latitude first.
        let place = Spatial::point(-122.349, 47.651, 4326);
        assert_eq!(hex::encode(place.to_bytes(true)), "e6100000010c17d9cef753d347407593180456965ec0");
        assert_eq!(hex::encode(point.binary()), "010100000000000000000014400000000000002440");
    }

    #[test]
    fn shapes_come_back() {
        for text in [
            "POINT (-1.5 2)",
            "POINT EMPTY",
            "LINESTRING (0 0, 1 2)",
            "LINESTRING (0 0, 1 2, 3 4)",
            "LINESTRING EMPTY",
            "POLYGON EMPTY",
            "POLYGON ((0 0, 9 0, 9 9, 0 0), (1 1, 2 1, 2 2, 1 1))",
        ] {
            for geography in [false, true] {
                let shape = Spatial::parse(text, 4326).unwrap();
                let back = Spatial::from_bytes(&shape.to_bytes(geography), geography).unwrap();
                assert_eq!((back.text().as_str(), back.srid), (text, 4326));
            }
        }
        for wrong in [
            "",
            "POINT",
            "POINT (1)",
            "POINT (a b)",
            "LINESTRING (1 1)",
            "POLYGON ((0 0, 1 1, 0 0))",
            "CIRCULARSTRING (0 0, 1 1, 2 2)",
        ] {
            assert_eq!(Spatial::parse(wrong, 0), None, "{wrong}");
        }
        assert_eq!(Spatial::from_bytes(&[0; 7], false), None);
    }
}
