from ortho_core.mstep.elsewhere import general_prompts, unseen_classes


def test_general_prompts_are_many_and_each_is_there_once():
    prompts = general_prompts()
    assert len(set(prompts)) == len(prompts) > 300
    assert all(prompt == prompt.strip() and "{" not in prompt for prompt in prompts)


def test_classes_that_prompts_name_by_name_or_by_number_are_seen_and_other_words_name_none():
    classes = ("cat", "dog", "3", "bird")
    assert unseen_classes(classes, ["dog", "0", "dog", "horse", "17"]) == ("3", "bird")
    assert unseen_classes(classes, ["3"]) == ("cat", "dog", "bird")  # a class of that name, and not the last
    assert unseen_classes(classes, ["bird", *map(str, range(3))]) == ()
