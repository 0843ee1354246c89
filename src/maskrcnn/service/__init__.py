"""An HTTP service in front of a `Predictor`: `maskrcnn serve MODEL`, or `create_app` for any ASGI
server.

In:  images in HTTP requests.
Out: COCO's JSON and overlays. A request is received within limits, its images are decoded in
     threads, one model thread predicts them in batches, and threads write the response.

This package knows HTTP; images, prediction and drawing belong to the packages below. It needs the
extra `serve`, which is imported where it is used.
"""
