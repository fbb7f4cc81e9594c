"""The page for people at `GET /`: health, today's totals, lag and the state of every day, rendered on the server.

`figures` asks for what the page shows besides the health report, `view` turns that into words, `calendar` and `chart`
arrange days and minutes, `page.html` and `page.css` are what the browser gets. No SQL, no script, no external asset.
"""
