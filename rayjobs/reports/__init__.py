"""Parts that the reports of several verbs share."""
