//! Which ids a user may map: his own, and the ranges of /etc/subuid and /etc/subgid.

use super::setup::Extent;

/// Extents of a map (user_namespaces(7)).
const MOST_EXTENTS: usize = 340;

/// A range of ids: the first, and how many.
pub type Range = (u32, u32);

/// The ranges of a user in the text of /etc/subuid or /etc/subgid (subuid(5)): by name or by number, in their order.
pub fn ranges(text: &str, name: Option<&str>, user: u32) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let is_his = name.is_some_and(|name| name == owner) || owner.parse() == Ok(user);
        is_his.then_some((first.parse().ok()?, count.parse().ok()?))
    };
    text.lines().filter_map(range).collect()
}

/// The ranges in what getsubids(1) prints: `0: NAME FIRST COUNT`.
pub fn listed(text: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().rev();
        let (count, first) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        line.contains(':').then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// The map that one's own id and some ranges make: 0 is one's own. What overlaps with what stands before it is left out, as what
/// is beyond all ids, since the kernel takes such a map as a whole or not at all.
pub fn extents(own: u32, ranges: &[Range]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = vec![(0, own, 1)];
    for &(first, count) in ranges {
        let inside = extents.last().map_or(0, |&(inside, _, count)| inside.saturating_add(count));
        let fits = |start: u32| start.checked_add(count).is_some();
        let apart = |&(_, outside, many): &Extent| {
            u64::from(first) + u64::from(count) <= u64::from(outside)
                || u64::from(outside) + u64::from(many) <= first.into()
        };
        if count > 0 && fits(first) && fits(inside) && extents.iter().all(apart) && extents.len() < MOST_EXTENTS {
            extents.push((inside, first, count));
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_a_users_by_name_and_by_number_in_their_order() {
        let text = "ann:100000:65536\nbob:1:1\n1000:300000:10\n\n# ann\nann:x:1\nann:5\n ann:200000:20 \n";
        assert_eq!(ranges(text, Some("ann"), 1000), [(100_000, 65536), (300_000, 10), (200_000, 20)]);
        assert_eq!(ranges(text, None, 1000), [(300_000, 10)]);
        assert_eq!(ranges(text, Some("eve"), 7), []);
    }

    #[test]
    fn what_getsubids_prints_is_read() {
        assert_eq!(listed("0: ann 100000 65536\n1: ann 300000 10\n"), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(listed("Error fetching ranges\n"), []);
    }

    #[test]
    fn ones_own_id_is_root_and_ranges_follow() {
        assert_eq!(extents(1000, &[]), [(0, 1000, 1)]);
        assert_eq!(
            extents(1000, &[(100_000, 65536), (300_000, 10)]),
            [(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, 10)]
        );
    }

    #[test]
    fn what_the_kernel_would_refuse_is_left_out_of_a_map() {
        let overlapping = [(990, 20), (100_000, 10), (100_009, 5), (100_010, 5), (u32::MAX, 2), (5, 0)];
        assert_eq!(extents(1000, &overlapping), [(0, 1000, 1), (1, 100_000, 10), (11, 100_010, 5)]);
        let many: Vec<Range> = (0..1000).map(|number| (10_000 + 10 * number, 5)).collect();
        assert_eq!(extents(1000, &many).len(), MOST_EXTENTS);
    }
}
