//! The documents: what they show is what a server does, what they name is there, and what is there they name.

#[path = "docs/names.rs"]
mod names;
#[path = "docs/places.rs"]
mod places;
#[path = "docs/play.rs"]
mod play;
mod support;

use chat_server::wire::dialect::{Dialect, FromServer, Verb, list};
use names::{Document, Repository};
use play::{Example, Stage};

/// The examples of the wire contract.
fn examples() -> Vec<Example> {
    let document = include_str!("../docs/PROTOCOL.md");
    play::examples(document).unwrap_or_else(|error| panic!("docs/PROTOCOL.md: {error}"))
}

#[track_caller]
fn expect_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[track_caller]
fn expect_none_in_any(find: fn(&Repository, &Document) -> Vec<String>) {
    let repository = Repository::read();
    let documents = repository.documents();
    assert!(documents.iter().any(|document| document.path == "docs/PROTOCOL.md"));
    expect_none(documents.iter().flat_map(|document| find(&repository, document)).collect());
}

#[test]
fn the_examples_of_the_wire_contract_are_what_a_server_does() {
    expect_none(Stage::prepare().play_all(&examples()));
}

#[test]
fn every_msgid_and_every_errno_is_in_an_example() {
    expect_none(names::unshown(&Repository::read(), &examples()));
}

#[test]
fn every_error_that_a_request_has_of_its_own_is_in_an_example() {
    expect_none(names::unshown_refusals(&Repository::read(), &examples()));
}

#[test]
fn every_link_leads_somewhere() {
    expect_none_in_any(names::dead_links);
}

#[test]
fn every_file_and_every_test_that_a_document_names_is_there() {
    expect_none_in_any(names::missing_files);
}

#[test]
fn every_place_in_the_source_that_a_document_cites_is_there() {
    expect_none_in_any(places::missing_places);
}

/// The documents about the architecture.
fn architecture(repository: &Repository) -> [Document; 2] {
    ["docs/ARCHITECTURE.md", "docs/ARCHITECTURE.zh-CN.md"].map(|path| repository.document(path))
}

#[test]
fn the_documents_about_the_architecture_name_what_is_there_and_all_threads() {
    let repository = Repository::read();
    let documents = architecture(&repository);
    expect_none(documents.iter().flat_map(|document| places::missing_names(&repository, document)).collect());
    expect_none(documents.iter().flat_map(|document| places::unnamed_threads(&repository, document)).collect());
}

#[test]
fn the_names_in_the_document_for_contributors_are_there() {
    let repository = Repository::read();
    for path in ["CONTRIBUTING.md", "CONTRIBUTING.zh-CN.md"] {
        let document = repository.document(path);
        expect_none(places::missing_names(&repository, &document));
    }
}

#[test]
fn the_documents_about_the_architecture_cite_the_same() {
    let [english, chinese] = architecture(&Repository::read());
    expect_none(places::differences(&english, &chinese));
}

#[test]
fn every_flag_that_a_document_names_is_one() {
    expect_none_in_any(names::unknown_flags);
}

#[test]
fn every_metric_that_a_document_names_is_one() {
    expect_none_in_any(names::unknown_metrics);
}

#[test]
fn every_error_and_every_msgid_that_a_document_names_is_one() {
    expect_none_in_any(names::unknown_numbers);
}

#[test]
fn every_flag_and_every_metric_is_named_in_a_document() {
    let repository = Repository::read();
    expect_none(names::unnamed(&repository, &repository.documents()));
}

#[test]
fn every_section_of_the_wire_contract_that_a_source_cites_is_there() {
    expect_none(names::dead_citations(&Repository::read()));
}

/// The documents about dialects, in both languages.
fn about_dialects() -> [(&'static str, &'static str); 2] {
    [
        ("docs/DIALECTS.md", include_str!("../docs/DIALECTS.md")),
        ("docs/DIALECTS.zh-CN.md", include_str!("../docs/DIALECTS.zh-CN.md")),
    ]
}

/// Whether a table has a row for this.
fn has_row(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.starts_with(&format!("| `{name}` | ")))
}

#[test]
fn every_dialect_and_every_key_of_a_file_is_in_a_table() {
    let unknown = Dialect::from_toml("unknown = 1", "test").unwrap_err().to_string();
    let keys: Vec<&str> = names::spans(&unknown).filter(|key| *key != "unknown").collect();
    assert!(keys.len() > 8 && list().count() > 15, "{unknown}");
    let mut named: Vec<&str> = list().map(Dialect::name).collect();
    named.extend(&keys);
    for (path, text) in about_dialects() {
        for name in &named {
            assert!(has_row(text, name), "{path} has no row for {name}");
        }
    }
}

#[test]
fn the_file_of_a_dialect_in_the_documents_is_one() {
    let files = about_dialects().map(|(_, text)| {
        let (_, file) = text.split_once("```toml\n").expect("an example");
        file.split("```").next().unwrap_or("")
    });
    assert_eq!(files[0], files[1]);
    let ours = Dialect::from_toml(files[0], "ours").unwrap();
    assert_eq!((ours.name(), ours.number(Verb::Register), ours.number(Verb::Chat)), ("ours", Some(13), Some(5)));
    let chat = ours.write_to_server(br#"{"msgid":6,"toid":2,"msg":"hi"}"#).unwrap();
    assert_eq!(String::from_utf8(chat).unwrap(), "{\"msgid\":5,\"receiver\":2,\"msg\":\"hi\"}\0");
    let lists = ours.read_from_server(br#"{"msgid":21,"errno":0,"friendList":[{"fid":2}]}"#);
    let canon = br#"{"msgid":200,"errno":0,"friends":["{\"id\":2}"]}"#;
    assert_eq!(lists, FromServer::Reply(Verb::Update, canon.to_vec()));
    let keys = files[0].lines().filter_map(|line| line.split_once(" = ")).count();
    assert_eq!(keys, 10, "one key a line");
}
