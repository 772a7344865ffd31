//! The documents: what they show is what a server does, what they name is there, and what is there they name.

#[path = "docs/names.rs"]
mod names;
#[path = "docs/places.rs"]
mod places;
#[path = "docs/play.rs"]
mod play;
mod support;

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
    ["docs/ARCHITECTURE.md", "docs/ARCHITECTURE.zh-CN.md"].map(|path| {
        let text = repository.text(path).unwrap_or_else(|| panic!("no {path}"));
        Document { path: path.to_owned(), text: text.to_owned() }
    })
}

#[test]
fn the_documents_about_the_architecture_name_what_is_there_and_all_threads() {
    let repository = Repository::read();
    let documents = architecture(&repository);
    expect_none(documents.iter().flat_map(|document| places::missing_names(&repository, document)).collect());
    expect_none(documents.iter().flat_map(|document| places::unnamed_threads(&repository, document)).collect());
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
