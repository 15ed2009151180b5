from ortho_core.memory.moments import at_most, moments_of


def test_few_rows_and_many_have_their_moments():
    def alive(B, P):
        return [10, 1000 + B, 100 * B + 10 * P, 50 * B + 200 * P, 5]

    moments = moments_of(alive(2, 1), alive(3, 1), alive(2, 2), (2, 1), 1)
    for B, P in ((1, 1), (2, 1), (5, 1), (9, 3), (12, 5), (64, 1), (4, 64)):
        assert at_most(moments, B, P) == max(alive(B, P))
    assert len(moments) < 5  # what is largest nowhere is left out


def test_of_updates_that_are_not_alike_the_peaks_are_compared():
    moments = moments_of([1, 20], [1, 7, 30], [1, 20], (2, 0), 1)
    assert moments == ((0, 10, 0),)
