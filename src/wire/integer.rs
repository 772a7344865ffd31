//! Integers as other languages write them: where every number is a double, 7 may come as `7.0` or `7e0`.

/// The integer that `text` stands for, written as JSON writes a number; `None` if it is not integral, or
/// does not fit 64 bits.
///
/// It is read digit by digit and never rounded: `9007199254740993.0` is exactly that, and
/// `1.0000000000000000001`, which as a double is 1, is none.
pub fn integer(text: &str) -> Option<i64> {
    let (is_negative, number) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || !is_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)) {
        return None;
    }
    // The number is `digits` times ten to the power of `shift`, and the last digit is not 0.
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let shift = i128::from(exponent.parse::<i64>().ok()?) + zeros as i128 - fraction.len() as i128;
    // Below 0 it is not integral; what i128 cannot hold does not fit 64 bits either.
    let power = 10_i128.checked_pow(u32::try_from(shift).ok()?)?;
    let value = significant.parse::<i128>().ok()?.checked_mul(power)?;
    i64::try_from(if is_negative { -value } else { value }).ok()
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn what_is_integral_is_read_exactly_however_it_is_written() {
        let nines = "9".repeat(400);
        for (text, value) in [
            ("1", 1),
            ("1.0", 1),
            ("1.000", 1),
            ("-1.0", -1),
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("0.00e5", 0),
            (&format!("0e{nines}"), 0),
            (&format!("-0.0E-{nines}"), 0),
            ("1e2", 100),
            ("1E+2", 100),
            ("1e0002", 100),
            ("100e-2", 1),
            ("120e-1", 12),
            ("0.1e1", 1),
            ("1.5e1", 15),
            ("0.0000000000000000000000001e25", 1),
            (&format!("1.{}", "0".repeat(5000)), 1),
            (&format!("7{}e-5000", "0".repeat(5000)), 7),
            ("1e18", 1_000_000_000_000_000_000),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("9223372036854775807.0", i64::MAX),
            ("9.223372036854775807e18", i64::MAX),
            ("-9223372036854775808.0", i64::MIN),
        ] {
            assert_eq!(integer(text), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_integral_or_too_large_is_none() {
        let nines = "9".repeat(400);
        for text in [
            "1.5",
            "0.1",
            "-0.5",
            "1e-1",
            "15e-1",
            "1.0000000000000000001",
            "9007199254740992.5",
            "1e-400",
            "1e19",
            "9223372036854775808",
            "9223372036854775808.0",
            "-9223372036854775809.0",
            "1e400",
            "99999999999999999999e-1",
            &format!("1e{nines}"),
            &format!("1e-{nines}"),
            "",
            "-",
            "+1",
            "--1",
            ".5",
            "1.",
            "1.e2",
            "1e",
            "1e+",
            "1e1.0",
            "1e1e1",
            "1.0.0",
            " 1",
            "1 ",
            "0x10",
            "1_0",
            "NaN",
            "inf",
            "\u{664}",
        ] {
            assert_eq!(integer(text), None, "{text}");
        }
    }
}
