//! Rows that have arrived whole, decoded from the connection's buffer as it stands.
//!
//! Not part of upstream. The decoders beside this module take each column in two or three asynchronous reads of the connection; for rows of a dozen columns those cost
//! several times what the decoding costs. Here the usual types are read from a slice. A type that is not usual goes to its own decoder, over the same slice. A row that is not
//! whole, and one that is wrong, is left where it is: whoever asks decodes it through the connection, which waits for the rest, or says what is wrong.

use std::{
    io,
    pin::Pin,
    task::{self, Poll},
};

use futures_util::future::FutureExt;

use super::{RowBitmap, TokenRow};
use crate::{
    tds::{
        codec::{ColumnData, FixedLenType, TypeInfo, VarLenContext, VarLenType},
        Collation, Context, Numeric,
    },
    SqlReadBytes,
};
#[cfg(feature = "tds73")]
use crate::tds::time::{Date, DateTime2, Time};

impl TokenRow<'static> {
    /// The row at the start of `bytes` and how long it is, if it is there whole and right.
    pub(crate) fn decode_buffered(
        bytes: &[u8],
        context: &mut Context,
        nbc: bool,
    ) -> Option<(Self, usize)> {
        let meta = context.last_meta()?;
        let mut src = Buffered {
            bytes,
            read: 0,
            context,
        };
        let nulls = match nbc {
            true => Some(
                RowBitmap::decode(&mut src, meta.columns.len())
                    .now_or_never()?
                    .ok()?,
            ),
            false => None,
        };
        let mut data = Vec::with_capacity(meta.columns.len());
        for (i, column) in meta.columns.iter().enumerate() {
            match nulls.as_ref().is_some_and(|nulls| nulls.is_null(i)) {
                true => data.push(column.base.null_value()),
                false => src.column(&column.base.ty, &mut data)?,
            }
        }
        let read = src.read;
        Some((Self { data }, read))
    }
}

struct Buffered<'a> {
    bytes: &'a [u8],
    read: usize,
    context: &'a mut Context,
}

type Cells = Vec<ColumnData<'static>>;

/// Each value is made where it stays: moved from call to call, a value of several words costs more than its decoding.
impl<'a> Buffered<'a> {
    #[inline]
    fn column(&mut self, ty: &TypeInfo, cells: &mut Cells) -> Option<()> {
        let start = self.read;
        let usual = match ty {
            TypeInfo::FixedLen(ty) => self.fixed(*ty, cells),
            TypeInfo::VarLenSized(ctx) => self.variable(ctx, cells),
            TypeInfo::VarLenSizedPrecision {
                ty: VarLenType::Decimaln | VarLenType::Numericn,
                scale,
                ..
            } => self.numeric(*scale, cells),
            _ => None,
        };
        if usual.is_none() {
            self.read = start;
            cells.push(ColumnData::decode(self, ty).now_or_never()?.ok()?);
        }
        Some(())
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.read.checked_add(len)?;
        let bytes = self.bytes.get(self.read..end)?;
        self.read = end;
        Some(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A value behind a length of two bytes; `Some(None)` for NULL.
    #[inline]
    fn short(&mut self) -> Option<Option<&'a [u8]>> {
        match u16::from_le_bytes(self.array()?) {
            0xffff => Some(None),
            len => self.take(len.into()).map(Some),
        }
    }

    fn fixed(&mut self, ty: FixedLenType, cells: &mut Cells) -> Option<()> {
        match ty {
            FixedLenType::Bit => cells.push(ColumnData::Bit(Some(self.byte()? != 0))),
            FixedLenType::Int1 => cells.push(ColumnData::U8(Some(self.byte()?))),
            FixedLenType::Int2 => cells.push(ColumnData::I16(Some(i16::from_le_bytes(self.array()?)))),
            FixedLenType::Int4 => cells.push(ColumnData::I32(Some(i32::from_le_bytes(self.array()?)))),
            FixedLenType::Int8 => cells.push(ColumnData::I64(Some(i64::from_le_bytes(self.array()?)))),
            FixedLenType::Float4 => cells.push(ColumnData::F32(Some(f32::from_le_bytes(self.array()?)))),
            FixedLenType::Float8 => cells.push(ColumnData::F64(Some(f64::from_le_bytes(self.array()?)))),
            _ => return None,
        }
        Some(())
    }

    fn variable(&mut self, ctx: &VarLenContext, cells: &mut Cells) -> Option<()> {
        // Longer ones come in chunks.
        let short = ctx.len() < 0xffff;
        match ctx.r#type() {
            VarLenType::Bitn => match self.byte()? {
                0 => cells.push(ColumnData::Bit(None)),
                1 => cells.push(ColumnData::Bit(Some(self.byte()? > 0))),
                _ => return None,
            },
            VarLenType::Intn => match (self.byte()?, ctx.len()) {
                (0, 1) => cells.push(ColumnData::U8(None)),
                (0, 2) => cells.push(ColumnData::I16(None)),
                (0, 4) => cells.push(ColumnData::I32(None)),
                (0, _) => cells.push(ColumnData::I64(None)),
                (1, _) => cells.push(ColumnData::U8(Some(self.byte()?))),
                (2, _) => cells.push(ColumnData::I16(Some(i16::from_le_bytes(self.array()?)))),
                (4, _) => cells.push(ColumnData::I32(Some(i32::from_le_bytes(self.array()?)))),
                (8, _) => cells.push(ColumnData::I64(Some(i64::from_le_bytes(self.array()?)))),
                _ => return None,
            },
            VarLenType::BigBinary | VarLenType::BigVarBin if short => {
                cells.push(ColumnData::Binary(self.short()?.map(|bytes| bytes.to_vec().into())))
            }
            VarLenType::NChar | VarLenType::NVarchar if short => match self.short()? {
                Some(bytes) => cells.push(ColumnData::String(Some(self.utf16(bytes)?.into()))),
                None => cells.push(ColumnData::String(None)),
            },
            VarLenType::BigChar | VarLenType::BigVarChar if short => match self.short()? {
                Some(bytes) => cells.push(ColumnData::String(Some(coded(bytes, ctx.collation())?.into()))),
                None => cells.push(ColumnData::String(None)),
            },
            #[cfg(feature = "tds73")]
            VarLenType::Daten => match self.byte()? {
                0 => cells.push(ColumnData::Date(None)),
                3 => cells.push(ColumnData::Date(Some(self.date()?))),
                _ => return None,
            },
            #[cfg(feature = "tds73")]
            VarLenType::Timen => match self.byte()? {
                0 => cells.push(ColumnData::Time(None)),
                len => cells.push(ColumnData::Time(Some(self.time(ctx.len(), len)?))),
            },
            #[cfg(feature = "tds73")]
            VarLenType::Datetime2 => match self.byte()? {
                0 => cells.push(ColumnData::DateTime2(None)),
                len => {
                    let time = self.time(ctx.len(), len.checked_sub(3)?)?;
                    cells.push(ColumnData::DateTime2(Some(DateTime2::new(self.date()?, time))))
                }
            },
            _ => return None,
        }
        Some(())
    }

    fn numeric(&mut self, scale: u8, cells: &mut Cells) -> Option<()> {
        let len = self.byte()?;
        if len == 0 {
            cells.push(ColumnData::Numeric(None));
            return Some(());
        }
        let sign = match self.byte()? {
            0 => -1,
            1 => 1,
            _ => return None,
        };
        let magnitude: i128 = match len {
            5 => u32::from_le_bytes(self.array()?).into(),
            9 => u64::from_le_bytes(self.array()?).into(),
            _ => return None,
        };
        let value = Numeric::new_with_scale(magnitude * sign, scale);
        cells.push(ColumnData::Numeric(Some(value)));
        Some(())
    }

    #[cfg(feature = "tds73")]
    fn date(&mut self) -> Option<Date> {
        let [a, b, c] = self.array()?;
        Some(Date::new(u32::from_le_bytes([a, b, c, 0])))
    }

    #[cfg(feature = "tds73")]
    fn time(&mut self, scale: usize, len: u8) -> Option<Time> {
        let increments = match (scale, len) {
            (0..=2, 3) => {
                let [a, b, c] = self.array()?;
                u32::from_le_bytes([a, b, c, 0]).into()
            }
            (3..=4, 4) => u32::from_le_bytes(self.array()?).into(),
            (5..=7, 5) => {
                let [a, b, c, d, e] = self.array()?;
                u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
            }
            _ => return None,
        };
        Some(Time::new(increments, scale as u8))
    }

    /// Text in UTF-16. What is not of ASCII alone goes the usual way.
    fn utf16(&self, bytes: &[u8]) -> Option<String> {
        let (units, []) = bytes.as_chunks::<2>() else {
            return None;
        };
        if units.iter().all(|&unit| u16::from_le_bytes(unit) < 0x80) {
            let ascii: Vec<u8> = units.iter().map(|unit| unit[0]).collect();
            return String::from_utf8(ascii).ok();
        }
        let decoded = char::decode_utf16(units.iter().map(|&unit| u16::from_le_bytes(unit)));
        match self.context.lossy_utf16() {
            true => Some(
                decoded
                    .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                    .collect(),
            ),
            false => decoded.collect::<Result<_, _>>().ok(),
        }
    }
}

/// Text of one code page.
fn coded(bytes: &[u8], collation: Option<Collation>) -> Option<String> {
    let encoding = collation.as_ref()?.encoding().ok()?;
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .map(Into::into)
}

impl futures_util::io::AsyncRead for Buffered<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(match self.get_mut().take(buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(bytes.len())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })
    }
}

impl SqlReadBytes for Buffered<'_> {
    fn debug_buffer(&self) {
        eprintln!("{:?}", self.bytes);
    }

    fn context(&self) -> &Context {
        self.context
    }

    fn context_mut(&mut self) -> &mut Context {
        self.context
    }
}
