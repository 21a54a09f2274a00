import pytest
import torch

from sona_pipeline.generation.words import prompts_with, word_vector

TEMPLATES = ("a photo of a {}", "{} on a table", "a very dark photo of a {} at night")


def encoded(pipe, text):
    return pipe.encode_texts([text], pipe.device)["prompt_embeds"][0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_labels_own_vector_makes_its_own_prompt(pipe, template):
    vectors = torch.stack([word_vector(pipe, label) for label in ("bag", "shirt")])
    assert all(len(pipe.tokenizer(label).input_ids) == 3 for label in ("bag", "shirt"))  # words of one token
    wanted = torch.stack([encoded(pipe, template.format(label)) for label in ("bag", "shirt")])
    torch.testing.assert_close(prompts_with(pipe, template, vectors), wanted)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_encoder_reads_a_vector_as_if_its_table_had_it(pipe, template):
    table = pipe.text_encoder.get_input_embeddings().weight
    vector, row = torch.linspace(-1, 1, table.shape[1]), pipe.tokenizer("bag").input_ids[1]
    own, before = table[row].clone(), encoded(pipe, template.format("bag"))
    found = prompts_with(pipe, template, vector[None])[0]
    with torch.no_grad():
        table[row] = vector
        wanted = encoded(pipe, template.format("bag"))
        table[row] = own
    torch.testing.assert_close(found, wanted)
    assert torch.equal(encoded(pipe, template.format("bag")), before)
    word = len(pipe.tokenizer(template.split("{}")[0].rstrip()).input_ids) - 1
    changed = (found - before).abs().amax(dim=1) > 0
    assert not changed[:word].any() and changed[word:].all()  # what comes after the word has read it


def test_a_label_of_several_tokens_is_their_mean(pipe):
    ids = pipe.tokenizer("ankle boot").input_ids[1:-1]
    assert len(ids) > 1
    torch.testing.assert_close(
        word_vector(pipe, "ankle boot"), pipe.text_encoder.get_input_embeddings().weight[ids].mean(0)
    )


def test_a_word_that_is_cut_off_is_refused(pipe):
    template = "very " * pipe.prompt_length + "dark {}"
    with pytest.raises(ValueError, match=f"text encoder reads, which is {pipe.prompt_length}: shorten it"):
        prompts_with(pipe, template, torch.zeros(1, 64))
