use super::*;

/// What `read` makes of a text, or the problems' lines.
pub(crate) fn read<T>(text: &str, read: impl FnOnce(&Section<'_>) -> Option<T>) -> Result<T, Vec<String>> {
    let mut problems = Vec::new();
    let tree = yaml::parse(&"test".into(), text, &mut problems).map_err(|problem| vec![problem.to_string()])?;
    layers::read_tree(tree, problems, read).map(|loaded| loaded.value).map_err(|error| error.lines().collect())
}

/// What `read` makes of the section with this key path, or the problems' lines.
pub(crate) fn read_at<T>(
    path: &[&str],
    json: &serde_json::Value,
    read_section: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Vec<String>> {
    let text = path.iter().rev().fold(json.to_string(), |json, key| format!("{{\"{key}\": {json}}}"));
    read(&text, |root| {
        let below = path[1..].iter().fold(root.key(path[0]).section(), |section, key| section.key(key).section());
        read_section(&below)
    })
}

/// The key path of a problem's line.
pub(crate) fn path(line: &str) -> &str {
    line.split(": ").nth(1).unwrap_or_default()
}

#[test]
fn addresses_are_shown_without_who_asks() {
    for (written, shown) in [
        ("nats://u:p@h:4222", "nats://(withheld)@h:4222"),
        ("nats://token@h", "nats://(withheld)@h"),
        ("amqp://u:p/a@ss@h/%2f?heartbeat=5&password=x", "amqp://(withheld)@h/%2f?heartbeat=5&password=(withheld)"),
        ("https://h/path", "https://h/path"),
        ("no url", "no url"),
    ] {
        assert_eq!(shown::withhold_userinfo(written), shown);
    }
}
