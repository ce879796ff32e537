"""A chat endpoint like OpenAI's, with interventions named by each request.

`settings` holds what the operator decides; `asked` reads a request, `pictures` and `urls` its
images, `conditions` its interventions; `engine` answers on a thread of its own, in batches made of
`jobs`, whose prompts `prompts` makes and whose text `writing` cuts; `app` and `replies` speak HTTP.
"""
