//! CRC-64-AVRO: the fingerprint by which Avro's single-object encoding names a schema.

const EMPTY: u64 = 0xc15d_213a_a4d7_a795;

const TABLE: [u64; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u64;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (EMPTY & (value & 1).wrapping_neg());
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(EMPTY, |value, byte| (value >> 8) ^ TABLE[((value ^ u64::from(*byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_examples() {
        assert_eq!(fingerprint(b"\"null\"").cast_signed(), 7_195_948_357_588_979_594);
        assert_eq!(fingerprint(b"\"boolean\"").cast_signed(), -6_970_731_678_124_411_036);
        assert_eq!(fingerprint(br#"{"name":"foo","type":"fixed","size":15}"#).cast_signed(), 1_756_455_273_707_447_556);
    }
}
