"""The page: a Gradio app beside the API (extra ``page``). See docs/page.md."""
