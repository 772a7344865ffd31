//! Histograms as text: base64 of the compressed V2 format, which all HdrHistogram tools read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::Deserialize;
use serde::de::Error as _;
use serde::ser::Error as _;

pub fn text(histogram: &Histogram<u64>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes)?;
    Ok(STANDARD.encode(bytes))
}

/// # Errors
/// The text is not one.
pub fn histogram(text: &str) -> anyhow::Result<Histogram<u64>> {
    let bytes = STANDARD.decode(text).map_err(anyhow::Error::msg)?;
    let mut rest = &bytes[..];
    Ok(Deserializer::new().deserialize(&mut rest)?)
}

pub fn serialize<S: serde::Serializer>(histogram: &Histogram<u64>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(histogram).map_err(S::Error::custom)?)
}

pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Histogram<u64>, D::Error> {
    histogram(&String::deserialize(from)?).map_err(D::Error::custom)
}
